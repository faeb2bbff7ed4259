"""Which layers compute their activations again, and that an estimate of what they keep is near what they keep."""

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, Qwen3Config

from tokensqueeze.objectives.packing import pack, packed_attention
from tokensqueeze.objectives.sequence_logps import CompletionLogps
from tokensqueeze.training.recompute import Recompute, kept_numbers_per_token

LAYERS = 6


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def test_fewer_tokens_keep_more_layers_and_the_last_ones_first(model: LlamaForCausalLM) -> None:
    # 6·64 + 7·64 + 4·160 = 1,472 numbers of 4 bytes: a layer keeps 588,800 bytes of 100 tokens.
    recompute = Recompute(model, budget_bytes=2 * 588_800)
    assert [recompute.prepare(tokens) for tokens in (100, 101, 50, 1, 1_000)] == [2, 1, 4, 6, 0]
    recompute.prepare(100)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True] * 4 + [False] * 2


def test_without_a_budget_every_layer_computes_again(model: LlamaForCausalLM) -> None:
    assert Recompute(model, budget_bytes=0).prepare(1) == 0
    assert all(layer.gradient_checkpointing for layer in model.model.layers)


def test_what_is_kept_changes_no_gradient(model: LlamaForCausalLM) -> None:
    gradients = [_gradient(model, Recompute(model, budget_bytes=0)), _gradient(model, Recompute(model, budget_bytes=1_500_000))]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_kept_layer_keeps_about_what_is_estimated(model: LlamaForCausalLM) -> None:
    tokens = 400
    estimate = kept_numbers_per_token(model.config) * 4 * tokens
    kept = [_saved_bytes(model, Recompute(model, budget_bytes=layers * estimate), tokens) for layers in (0, 2, 6)]
    assert (kept[1] - kept[0]) / 2 == pytest.approx(estimate, rel=0.2)
    assert (kept[2] - kept[1]) / 4 == pytest.approx(estimate, rel=0.2)


def test_heads_may_be_wider_than_the_model_and_experts_count_as_many_as_a_token_has() -> None:
    config = Qwen3Config(hidden_size=8, intermediate_size=20, num_attention_heads=4, head_dim=16)
    assert kept_numbers_per_token(config) == 6 * 8 + 7 * 64 + 4 * 20
    config.num_experts_per_tok, config.moe_intermediate_size = 3, 5
    assert kept_numbers_per_token(config) == 6 * 8 + 7 * 64 + 4 * 15


def test_model_that_does_not_name_its_mlps_width_has_the_usual_one() -> None:
    assert kept_numbers_per_token(GPT2Config(n_embd=8, n_head=4)) == 6 * 8 + 7 * 8 + 4 * 32


def _pass(model: LlamaForCausalLM, tokens: int) -> torch.Tensor:
    ids = torch.randint(0, 50, (tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    packed = pack([(ids[:10], [ids[10 : tokens // 2], ids[tokens // 2 :]])])
    return CompletionLogps(model)(packed).sum()


def _gradient(model: LlamaForCausalLM, recompute: Recompute) -> list[torch.Tensor]:
    model.zero_grad()
    recompute.prepare(60)
    with packed_attention(model):
        _pass(model, 60).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def _saved_bytes(model: LlamaForCausalLM, recompute: Recompute, tokens: int) -> int:
    """Count what a forward pass leaves for the backward pass, memory that several tensors share once; weights don't count."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    recompute.prepare(tokens)
    with packed_attention(model), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = _pass(model, tokens)
    assert loss.requires_grad
    return sum(storages.values())
