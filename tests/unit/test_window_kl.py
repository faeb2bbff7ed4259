"""The window scorer against the definition: a whole forward pass per candidate, in float64, one position after the other."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tokensqueeze.engines.lm_head import full_logits, plain_lm_head
from tokensqueeze.errors import ModelError
from tokensqueeze.scoring import window_kl
from tokensqueeze.scoring.bounds import Bound
from tokensqueeze.scoring.window_kl import Window, WindowScorer
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


def windows(
    scorer: WindowScorer,
    span: Span = STEP,
    candidates: Sequence[Sequence[int]] = CANDIDATES,
    *,
    window: int = 512,
    limit: float = math.inf,
) -> list[Window]:
    """Score candidates for a step of the completion."""
    trace = scorer.read_trace([*PROMPT, *COMPLETION])
    span = Span(len(PROMPT) + span.start, len(PROMPT) + span.end)
    num_tokens = min(window, len(trace.token_ids) - span.end)
    asked = [Window(trace, span, candidate, num_tokens, limit) for candidate in candidates]
    finished: list[Window] = []
    for one in asked:
        scorer.add(one)
    while len(finished) < len(asked):
        finished += scorer.advance()
    return asked


def sums(*arguments: Any, **options: Any) -> list[float]:
    return [window.kl for window in windows(*arguments, **options)]


def defined_sums(model: PreTrainedModel, span: Span = STEP, window: int = 512) -> list[float]:
    return [sum(defined_kl(model, span, candidate, window)) for candidate in CANDIDATES]


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("window", [1, 5, 7, 512])
def test_scores_are_those_of_the_definition(kind: str, window: int) -> None:
    model = random_model(kind)
    expected = defined_sums(model, window=window)
    assert min(expected[:3]) > 0.01
    assert sums(WindowScorer(model), window=window) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize(("first_positions", "growth"), [(1, 2), (2, 2), (3, 4)])
def test_a_window_read_in_pieces_has_the_same_score(kind: str, first_positions: int, growth: int) -> None:
    model = random_model(kind)
    scorer = WindowScorer(model, first_positions=first_positions, growth=growth)
    assert sums(scorer) == pytest.approx(defined_sums(model), rel=1e-5, abs=1e-6)


def test_a_float32_model_scores_close_to_the_float64_definition() -> None:
    model = random_model("qwen3", torch.float32)
    assert sums(WindowScorer(model)) == pytest.approx(defined_sums(model), rel=2e-4, abs=1e-6)


def test_a_bfloat16_model_keeps_its_logits_in_float32() -> None:
    model = random_model("qwen3", torch.bfloat16)
    head = plain_lm_head(model)
    hidden = torch.randn(3, 32).to(torch.bfloat16)
    logits = full_logits(head, hidden)
    assert logits.dtype == torch.float32
    expected = hidden.double() @ head.weight.double().T
    assert torch.allclose(logits.double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(head(hidden).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_first_and_the_last_step_are_scored_too() -> None:
    model = random_model("qwen3")
    for span in (Span(0, 4), Span(11, 14)):
        assert sums(WindowScorer(model), span) == pytest.approx(defined_sums(model, span), rel=1e-5, abs=1e-6)


def test_leaving_a_step_out_is_scored_as_well() -> None:
    model = random_model("qwen3")
    expected = sum(defined_kl(model, STEP, [], 512))
    assert expected > 0.01
    assert sums(WindowScorer(model), candidates=[[]]) == pytest.approx([expected], rel=1e-5)


def test_the_original_step_does_not_diverge_from_itself() -> None:
    scorer = WindowScorer(random_model("qwen3", torch.float32))
    for span in (Span(0, 4), STEP, Span(11, 14)):
        (kl,) = sums(scorer, span, [COMPLETION[span.start : span.end]])
        assert kl == pytest.approx(0, abs=1e-6)


def test_nothing_diverges_where_nothing_follows() -> None:
    last = Span(11, len(COMPLETION))
    judged = windows(WindowScorer(random_model("qwen3")), last, limit=0.0)
    assert [(window.kl, window.failed) for window in judged] == [(0.0, False)] * len(CANDIDATES)


@pytest.mark.parametrize("max_batch_tokens", [1, 24, 40])
def test_scores_do_not_depend_on_how_candidates_are_batched(max_batch_tokens: int) -> None:
    model = random_model("qwen3")
    at_once = sums(WindowScorer(model))
    assert sums(WindowScorer(model, max_batch_tokens=max_batch_tokens, first_positions=2)) == pytest.approx(at_once, rel=1e-6)
    assert sums(WindowScorer(model), candidates=CANDIDATES[::-1]) == pytest.approx(at_once[::-1], rel=1e-6)


def test_windows_of_several_traces_and_steps_share_a_batch() -> None:
    model = random_model("qwen3")
    scorer = WindowScorer(model, first_positions=2)
    long, short = [*PROMPT, *COMPLETION], [*PROMPT, *COMPLETION[:12]]
    long_trace, short_trace = scorer.read_trace(long), scorer.read_trace(short)
    asked = [Window(long_trace, Span(9, 14), CANDIDATES[1], 7), Window(short_trace, Span(4, 8), CANDIDATES[2], 8)]
    for window in asked:
        scorer.add(window)
    while not all(window.finished for window in asked):
        scorer.advance()
    expected_long = sum(defined_kl(model, STEP, CANDIDATES[1], 7))
    expected_short = sum(defined_kl(model, Span(0, 4), CANDIDATES[2], 8))
    assert [window.kl for window in asked] == pytest.approx([expected_long, expected_short], rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_head_that_runs_in_chunks_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    model = random_model("qwen3")
    whole = sums(WindowScorer(model))
    monkeypatch.setattr(window_kl, "_HEAD_ELEMENTS", 2 * rows * VOCABULARY)
    assert sums(WindowScorer(model)) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("first_positions", [1, 2, 5])
def test_a_candidate_fails_early_exactly_when_its_whole_window_is_at_the_limit(first_positions: int) -> None:
    model = random_model("qwen3")
    different = [candidate for candidate in CANDIDATES if candidate != COMPLETION[STEP.start : STEP.end]]
    whole = [sum(defined_kl(model, STEP, candidate, 512)) for candidate in different]
    scorer = WindowScorer(model, first_positions=first_positions, growth=2)
    for limit in [0.5 * min(whole), *(kl * factor for kl in whole for factor in (0.999, 1.001))]:
        judged = windows(scorer, candidates=different, limit=limit)
        assert [window.failed for window in judged] == [kl >= limit for kl in whole]
        # What is known of one that failed is no more than its KL; of one that passes it is all.
        assert all(window.kl <= kl * (1 + 1e-5) for window, kl in zip(judged, whole, strict=True))
        passing = [(window.kl, kl) for window, kl in zip(judged, whole, strict=True) if not window.failed]
        assert [known for known, _ in passing] == pytest.approx([kl for _, kl in passing], rel=1e-5)


def test_a_failed_candidate_is_not_read_on() -> None:
    model = random_model("qwen3")
    reads = []
    for limit in (math.inf, 1e-9):
        scorer = WindowScorer(model, first_positions=1, growth=2)
        windows(scorer, limit=limit)
        reads.append(scorer.tokens_read)
    # The trace once, and each candidate with its window but for the last token; or the candidate alone, but for the one
    # that is the original.
    trace, candidates = len(PROMPT) + len(COMPLETION), sum(map(len, CANDIDATES))
    assert reads == [trace + candidates + 6 * len(CANDIDATES), trace + candidates + 6]


def test_entropy_is_that_of_the_predictions() -> None:
    model = random_model("llama")
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=torch.tensor([[*PROMPT, *COMPLETION]])).logits[0], dim=-1)
    trace = WindowScorer(model).read_trace([*PROMPT, *COMPLETION], with_entropy=True)
    assert trace.entropy_L is not None
    assert trace.entropy_L.tolist() == pytest.approx((-(log_p.exp() * log_p).sum(-1)).tolist(), rel=1e-6)
    limit = Bound(0.1, scale="entropy").limit(trace, Span(4, 9), 3)
    # Tokens 9, 10 and 11 are predicted at 8, 9 and 10.
    assert limit == pytest.approx(0.1 * float(trace.entropy_L[8:11].sum()))


def test_the_model_works_as_before_once_it_has_scored() -> None:
    model = random_model("qwen3")
    ids = torch.tensor([[*PROMPT, *COMPLETION]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        windows(WindowScorer(model))
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_model_that_sees_a_part_of_the_context_is_refused() -> None:
    config = MistralConfig(**SMALL, num_key_value_heads=4, sliding_window=8, max_position_embeddings=64)
    with pytest.raises(ModelError, match=r'mistral: layers of type sliding_attention .* rewriter\.name = "none"'):
        WindowScorer(MistralForCausalLM(config))


def test_a_model_whose_attention_is_its_own_is_refused() -> None:
    config = GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    with pytest.raises(ModelError, match="gptj: its attention can't be given another form"):
        WindowScorer(GPTJForCausalLM(config))


def test_a_model_whose_positions_depend_on_the_batch_is_refused() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = Phi3Config(
        **SMALL,
        num_key_value_heads=4,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
        pad_token_id=0,
    )
    with pytest.raises(ModelError, match=r"phi3: its positions .*longrope"):
        WindowScorer(Phi3ForCausalLM(config))


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
        WindowScorer(Gemma2ForCausalLM(config))
