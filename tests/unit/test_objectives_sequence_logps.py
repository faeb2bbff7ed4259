"""Log-probabilities of completions against the model's own full logits, on a random two-layer model in float64."""

import copy
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.errors import ModelError
from tokensqueeze.objectives.packing import can_be_packed, pack, packed_attention
from tokensqueeze.objectives.reference_logps import reference_logps
from tokensqueeze.objectives.sequence_logps import completion_logps

PROMPTS = [[5, 6, 7], [8]]
COMPLETIONS = [[9, 10], [11, 12, 13, 14, 1], [15, 16]]
"""The first two follow the first prompt."""


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return _model()


def test_sums_the_log_softmax_of_each_completion_token(model: Qwen3ForCausalLM) -> None:
    assert _logps(model).tolist() == pytest.approx(_one_by_one(model).tolist(), rel=1e-12)


def test_one_alone_and_many_in_a_row_agree_to_the_gradient(model: Qwen3ForCausalLM) -> None:
    weights_S = torch.tensor([0.7, -0.4, 1.3], dtype=torch.float64)
    gradients = []
    for logps in (_one_by_one, _logps):
        model.zero_grad()
        (logps(model) * weights_S).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    # The model's norms round to float32.
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert len(gradients[0]) == len(list(model.parameters()))


def test_recomputed_activations_give_the_same_gradient(model: Qwen3ForCausalLM) -> None:
    expected = _gradient(model)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    recomputed = _gradient(model)
    model.gradient_checkpointing_disable()
    model.eval()
    torch.testing.assert_close(recomputed, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("positions_at_once", [1, 3, 7])
def test_chunked_lm_head_gives_the_same_value_and_gradient(model: Qwen3ForCausalLM, positions_at_once: int) -> None:
    torch.testing.assert_close(_gradient(model, positions_at_once), _gradient(model), rtol=1e-10, atol=1e-12)


def test_head_of_its_own_with_a_bias_gets_its_gradient() -> None:
    torch.manual_seed(1)
    model = _model(tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(16, 40, bias=True).double()
    gradients = []
    for logps in (_one_by_one, lambda model: _logps(model, positions_at_once=2)):
        model.zero_grad()
        logps(model).sum().backward()
        bias = model.lm_head.bias
        gradients.append([model.lm_head.weight.grad.clone(), bias.grad.clone()])  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_bfloat16_heads_gradient_keeps_its_digits_over_many_chunks() -> None:
    torch.manual_seed(3)
    rounded = _model(tie_word_embeddings=False).bfloat16()
    ids = torch.randint(0, 40, (600,)).tolist()
    gradients = []
    for model, positions_at_once in ((copy.deepcopy(rounded).float(), 600), (rounded, 2)):
        completion_logps(model, pack([(ids[:3], [ids[3:]])]), positions_at_once=positions_at_once).sum().backward()
        gradients.append(model.lm_head.weight.grad.float())  # type: ignore[union-attr]
    expected, gradient = gradients
    assert torch.linalg.vector_norm(gradient - expected) / torch.linalg.vector_norm(expected) < 0.01


def test_no_tensor_of_all_positions_by_the_vocabulary_exists(model: Qwen3ForCausalLM) -> None:
    class LargestLogits(TorchDispatchMode):
        rows: ClassVar[set[int]] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.ndim == 2 and result.shape[1] == model.config.vocab_size:
                self.rows.add(result.shape[0])
            return result

    with LargestLogits() as seen:
        _logps(model, positions_at_once=3).sum().backward()
    # Nine completion tokens in chunks of three; [16, 40] is the head's weight, transposed.
    assert seen.rows - {model.config.hidden_size} == {3}


def test_model_with_a_sliding_window_reads_one_completion_at_a_time() -> None:
    torch.manual_seed(2)
    model = _model(use_sliding_window=True, sliding_window=3, max_window_layers=0)
    assert not can_be_packed(model)
    assert _logps(model).tolist() == pytest.approx(_one_by_one(model).tolist(), rel=1e-12)
    full = _model()
    full.load_state_dict(model.state_dict())
    assert _logps(full).tolist() != pytest.approx(_logps(model).tolist(), rel=1e-5)


def test_the_models_attention_is_its_own_again_afterwards(model: Qwen3ForCausalLM) -> None:
    usual = model.config._attn_implementation
    _logps(model)
    assert model.config._attn_implementation == usual


def test_reference_logps_come_in_the_order_asked_for_whatever_is_packed_together(model: Qwen3ForCausalLM) -> None:
    sequences = [(PROMPTS[0], COMPLETIONS[0]), (PROMPTS[0], COMPLETIONS[1]), (PROMPTS[1], COMPLETIONS[2])]
    for max_batch_tokens in (1, 14, 1000):
        logps = reference_logps(model, sequences, max_batch_tokens=max_batch_tokens)
        assert logps == pytest.approx(_one_by_one(model).tolist(), rel=1e-12)


def test_prompt_is_read_once_for_all_its_completions() -> None:
    packed = pack([(PROMPTS[0], COMPLETIONS[:2]), (PROMPTS[1], COMPLETIONS[2:])])
    assert packed.token_ids_N.tolist() == [5, 6, 7, 9, 10, 11, 12, 13, 14, 1, 8, 15, 16]
    assert packed.position_ids_N.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 0, 1, 2]


def test_gradient_agrees_with_finite_differences(model: Qwen3ForCausalLM) -> None:
    parameters = list(model.parameters())
    model.zero_grad()
    _logps(model).sum().backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # Along the gradient the slope is its norm. The model's norms round to float32: the step must not be too small.
    step = 1e-3

    def shifted(distance: float) -> float:
        with torch.no_grad():
            moved = {
                name: parameter + distance * gradient / norm
                for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True)
            }
            originals = {name: parameter.clone() for name, parameter in model.named_parameters()}
            model.load_state_dict(moved, strict=False)
            value = _logps(model).sum().item()
            model.load_state_dict(originals, strict=False)
        return value

    assert norm.item() == pytest.approx((shifted(step) - shifted(-step)) / (2 * step), rel=1e-3)


def test_model_that_caps_its_logits_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=30.0,
    )
    with pytest.raises(ModelError, match=r"gemma2: config\.json sets final_logit_softcapping"):
        _logps(Gemma2ForCausalLM(config))


def _model(**changes: object) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **{"tie_word_embeddings": True, **changes},  # type: ignore[arg-type]
    )
    return Qwen3ForCausalLM(config).double().eval()


def _logps(model: torch.nn.Module, positions_at_once: int | None = None) -> torch.Tensor:
    packed = pack([(PROMPTS[0], COMPLETIONS[:2]), (PROMPTS[1], COMPLETIONS[2:])])
    return completion_logps(model, packed, positions_at_once=positions_at_once)  # type: ignore[arg-type]


def _one_by_one(model: torch.nn.Module) -> torch.Tensor:
    logps = []
    for prompt, completion in zip([PROMPTS[0], *PROMPTS], COMPLETIONS, strict=True):
        logprobs = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        logps.append(sum(logprobs[len(prompt) + i - 1, token] for i, token in enumerate(completion)))
    return torch.stack(logps)  # type: ignore[arg-type]


def _gradient(model: Qwen3ForCausalLM, positions_at_once: int | None = None) -> list[torch.Tensor]:
    model.zero_grad()
    with packed_attention(model):
        (_logps(model, positions_at_once) * torch.tensor([0.7, -0.4, 1.3], dtype=torch.float64)).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
