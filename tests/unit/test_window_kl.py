"""The step scorer against the definition: a whole forward pass per candidate, in float64, one position after the other."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tokensqueeze.errors import ModelError
from tokensqueeze.scoring import step_kl
from tokensqueeze.scoring.step_kl import StepKL
from tokensqueeze.traces.anatomy import Span

VOCABULARY = 53
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
PROMPT = [3, 41, 5, 9]
COMPLETION = [10, 11, 12, 13, 1, 20, 21, 22, 23, 24, 1, 30, 31, 32, 2, 7, 8]
STEP = Span(5, 10)
CANDIDATES = [[20], [20, 22, 24], [40, 41, 42, 43], [20, 21, 22, 23, 24], [44, 45, 46, 47, 48, 49, 50]]


def random_model(kind: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(2)
    spread: dict[str, Any] = {"initializer_range": 0.3}
    match kind:
        case "qwen3":
            config = Qwen3Config(**SMALL, **spread, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
            model = Qwen3ForCausalLM(config)
        case "llama":
            config = LlamaConfig(**SMALL, **spread, num_key_value_heads=4, max_position_embeddings=64)
            model = LlamaForCausalLM(config)
        case _:
            config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, **spread)
            model = GPT2LMHeadModel(config)
    return model.eval().to(dtype)  # type: ignore[arg-type]


def defined_kl(model: PreTrainedModel, span: Span, candidate: Sequence[int], window_tokens: int) -> list[float]:
    """D_KL(P(· | original, t_<j) ‖ P(· | rewritten, t_<j)) for j = 1 … T, in nats."""
    model = copy.deepcopy(model).double()
    window = COMPLETION[span.end : span.end + window_tokens]

    def predictions(before: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([[*before, *window]])).logits[0]
        return torch.log_softmax(logits_TV[len(before) - 1 : -1], dim=-1)

    log_p_TV = predictions([*PROMPT, *COMPLETION[: span.end]])
    log_q_TV = predictions([*PROMPT, *COMPLETION[: span.start], *candidate])
    return [float((log_p_V.exp() * (log_p_V - log_q_V)).sum()) for log_p_V, log_q_V in zip(log_p_TV, log_q_TV, strict=True)]


def scorer(model: PreTrainedModel, *, window: int = 5, reduction: str = "mean", max_batch_tokens: int = 8192) -> StepKL:
    return StepKL(
        model,
        prompt_token_ids=PROMPT,
        completion_token_ids=COMPLETION,
        window_tokens=window,
        reduction=reduction,  # type: ignore[arg-type]
        max_batch_tokens=max_batch_tokens,
    )


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("window", [1, 5, 7, 512])
def test_mean_and_sum_are_those_of_the_definition(kind: str, window: int) -> None:
    model = random_model(kind)
    expected = [defined_kl(model, STEP, candidate, window) for candidate in CANDIDATES]
    # Seven tokens follow the step, however many are asked for.
    assert {len(kls) for kls in expected} == {min(window, 7)}
    assert min(sum(kls) for kls in expected[:3]) > 0.01
    sums = scorer(model, window=window, reduction="sum").score(STEP, CANDIDATES)
    means = scorer(model, window=window, reduction="mean").score(STEP, CANDIDATES)
    assert sums == pytest.approx([sum(kls) for kls in expected], rel=1e-5, abs=1e-6)
    assert means == pytest.approx([sum(kls) / len(kls) for kls in expected], rel=1e-5, abs=1e-6)


def test_a_float32_model_scores_close_to_the_float64_definition() -> None:
    model = random_model("qwen3", torch.float32)
    expected = [sum(defined_kl(model, STEP, candidate, 7)) / 7 for candidate in CANDIDATES]
    assert scorer(model, window=7).score(STEP, CANDIDATES) == pytest.approx(expected, rel=2e-4, abs=1e-6)


def test_the_first_and_the_last_step_are_scored_too() -> None:
    model = random_model("qwen3")
    for span in (Span(0, 4), Span(11, 14)):
        expected = [sum(defined_kl(model, span, candidate, 512)) for candidate in CANDIDATES]
        scores = scorer(model, window=512, reduction="sum").score(span, CANDIDATES)
        assert scores == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_original_step_does_not_diverge_from_itself() -> None:
    scorer_of_trace = scorer(random_model("qwen3", torch.float32), window=512)
    for span in (Span(0, 4), STEP, Span(11, 14)):
        (kl,) = scorer_of_trace.score(span, [COMPLETION[span.start : span.end]])
        assert kl == pytest.approx(0, abs=1e-6)


def test_nothing_diverges_where_nothing_follows() -> None:
    last = Span(11, len(COMPLETION))
    assert scorer(random_model("qwen3")).score(last, CANDIDATES) == [0.0] * len(CANDIDATES)


def test_no_candidates_have_no_scores() -> None:
    assert scorer(random_model("qwen3")).score(STEP, []) == []


@pytest.mark.parametrize("max_batch_tokens", [1, 24, 40])
def test_scores_do_not_depend_on_how_candidates_are_batched(max_batch_tokens: int) -> None:
    model = random_model("qwen3")
    at_once = scorer(model, window=7).score(STEP, CANDIDATES)
    assert scorer(model, window=7, max_batch_tokens=max_batch_tokens).score(STEP, CANDIDATES) == pytest.approx(
        at_once, rel=1e-6
    )
    assert scorer(model, window=7).score(STEP, CANDIDATES[::-1]) == pytest.approx(at_once[::-1], rel=1e-6)


def test_scoring_one_step_leaves_the_next_as_it_was() -> None:
    model = random_model("qwen3")
    used, fresh = scorer(model), scorer(model)
    used.score(Span(0, 4), CANDIDATES)
    used.score(Span(11, 14), CANDIDATES)
    assert used.score(STEP, CANDIDATES) == fresh.score(STEP, CANDIDATES)


@pytest.mark.parametrize("positions", [1, 3])
def test_a_head_that_runs_in_chunks_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    model = random_model("qwen3")
    whole = scorer(model, window=7).score(STEP, CANDIDATES)
    monkeypatch.setattr(step_kl, "_HEAD_ELEMENTS", positions * (len(CANDIDATES) + 1) * VOCABULARY)
    assert scorer(model, window=7).score(STEP, CANDIDATES) == pytest.approx(whole, rel=1e-6)


def test_a_model_that_sees_a_part_of_the_context_is_refused() -> None:
    config = MistralConfig(**SMALL, num_key_value_heads=4, sliding_window=8, max_position_embeddings=64)
    with pytest.raises(ModelError, match=r'mistral: layers of type sliding_attention .* rewriter\.name = "none"'):
        scorer(MistralForCausalLM(config))


def test_a_model_that_changes_its_logits_behind_the_head_is_refused() -> None:
    config = Gemma2Config(
        **SMALL,
        num_key_value_heads=4,
        head_dim=8,
        final_logit_softcapping=30.0,
        layer_types=["full_attention", "full_attention"],
        max_position_embeddings=64,
    )
    with pytest.raises(ModelError, match=r"gemma2: .*final_logit_softcapping"):
        scorer(Gemma2ForCausalLM(config))
