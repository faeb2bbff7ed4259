"""Log-probabilities of completions against the model's own full logits, on a random two-layer model in float64."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.errors import ModelError
from tokensqueeze.objectives.sequence_logps import completion_logps

PROMPTS = [[5, 6, 7], [8]]
COMPLETIONS = [[9, 10], [11, 12, 13, 14, 1]]


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).double()


def test_sums_the_log_softmax_of_each_completion_token(model: Qwen3ForCausalLM) -> None:
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logprobs = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected.append(sum(logprobs[len(prompt) + i - 1, token].item() for i, token in enumerate(completion)))
    assert _logps(model).tolist() == pytest.approx(expected, rel=1e-12)


def test_padding_changes_nothing(model: Qwen3ForCausalLM) -> None:
    assert _logps(model, padding=7).tolist() == pytest.approx(_logps(model).tolist(), rel=1e-12)


def test_what_the_padding_holds_changes_nothing(model: Qwen3ForCausalLM) -> None:
    torch.testing.assert_close(_logps(model, pad_id=33), _logps(model, pad_id=0), rtol=0, atol=0)


@pytest.mark.parametrize("positions_at_once", [1, 3, 7])
def test_chunked_lm_head_gives_the_same_value_and_gradient(model: Qwen3ForCausalLM, positions_at_once: int) -> None:
    weights = torch.tensor([0.7, -0.4], dtype=torch.float64)
    gradients = []
    for chunk in (None, positions_at_once):
        model.zero_grad()
        logps = _logps(model, positions_at_once=chunk)
        (logps * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    assert len(gradients[0]) == len(list(model.parameters()))


def test_no_tensor_of_all_positions_by_the_vocabulary_exists(model: Qwen3ForCausalLM) -> None:
    seen: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    _logps(model, positions_at_once=3).sum().backward()
    hook.remove()
    # Seven completion tokens in chunks of three, forward and again in the backward pass.
    assert sorted(seen) == [1, 1, 3, 3, 3, 3]


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


def _logps(model: torch.nn.Module, *, padding: int = 0, pad_id: int = 0, positions_at_once: int | None = None) -> torch.Tensor:
    texts = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    longest = max(map(len, texts)) + padding
    return completion_logps(
        model,  # type: ignore[arg-type]
        token_ids_BT=torch.tensor([text + [pad_id] * (longest - len(text)) for text in texts]),
        prompt_lengths_B=torch.tensor([len(prompt) for prompt in PROMPTS]),
        lengths_B=torch.tensor([len(text) for text in texts]),
        positions_at_once=positions_at_once,
    )
