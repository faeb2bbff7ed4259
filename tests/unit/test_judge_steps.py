"""Rules run side by side and scored together choose as they would alone, with every candidate scored in full by itself."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.config import Reliable
from tokensqueeze.rewriters.choice import Choice, Judged, Rule
from tokensqueeze.rewriters.decide import rule_of
from tokensqueeze.rewriters.judge_steps import JudgedStep, Judging, TraceSteps, judge_steps
from tokensqueeze.rewriters.kl_bound import choose_within_bound
from tokensqueeze.schema import Candidate
from tokensqueeze.scoring.bounds import Bound
from tokensqueeze.scoring.window_kl import WindowScorer
from tokensqueeze.traces.anatomy import Span

VOCABULARY = 40
CONTEXT = 96
WINDOW = 9


def small_model() -> PreTrainedModel:
    torch.manual_seed(5)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        initializer_range=0.15,
    )
    return Qwen3ForCausalLM(config).eval()


MODEL = small_model()


def reliable(step_text: str, step: Sequence[int], candidates: Sequence[Candidate], **options: Any) -> Rule:
    return rule_of(Reliable(**options), step_text=step_text, step_token_ids=step, candidates=candidates)


class Story:
    """A random trace with steps and candidates; some candidates are drawn near their step, so that some pass."""

    def __init__(self, seed: int):
        rng = random.Random(seed)
        self.prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 5))]
        self.completion = [rng.randrange(VOCABULARY) for _ in range(rng.randint(12, 30))]
        cuts = sorted(rng.sample(range(len(self.completion)), rng.choice([2, 4, 6])))
        self.spans = [Span(*cuts[i : i + 2]) for i in range(0, len(cuts), 2)]
        self.candidates = [self._candidates(rng, span) for span in self.spans]

    def _candidates(self, rng: random.Random, span: Span) -> list[Candidate]:
        step = self.completion[span.start : span.end]
        found: dict[tuple[int, ...], Candidate] = {}
        for draw in range(rng.randint(0, 8)):
            near = [token for token in step if rng.random() < 0.7] + [rng.randrange(VOCABULARY)] * rng.randint(0, 1)
            ids = near or [rng.randrange(VOCABULARY)]
            text = " ".join(str(token) if token % 3 else "word" for token in ids)
            found.setdefault(tuple(ids), Candidate(text, ids, rng.randint(1, 3), draw))
        return list(found.values())

    def rules(self, rule: str) -> list[Rule]:
        made = []
        for span, candidates in zip(self.spans, self.candidates, strict=True):
            step = self.completion[span.start : span.end]
            if rule == "kl_bound":
                made.append(choose_within_bound(step, candidates))
            else:
                made.append(reliable("the step", step, candidates, min_reliability=0.6, form="length_class"))
        return made

    def steps(self, rule: str) -> TraceSteps:
        return TraceSteps(self.prompt, self.completion, list(zip(self.spans, self.rules(rule), strict=True)))


@torch.inference_mode()
def defined_kls(token_ids: Sequence[int], span: Span, candidate: Sequence[int], window: int) -> list[float]:
    def predictions(before: Sequence[int]) -> torch.Tensor:
        following = token_ids[span.end : span.end + window]
        logits = MODEL(input_ids=torch.tensor([[*before, *following]])).logits[0, len(before) - 1 : -1]
        return torch.log_softmax(logits.double(), dim=-1)

    p, q = predictions(token_ids[: span.end]), predictions([*token_ids[: span.start], *candidate])
    return (p.exp() * (p - q)).sum(-1).tolist()


def alone(story: Story, rule: str, kl_bound: float) -> list[Choice]:
    """Answer each rule by itself, from whole windows."""
    token_ids = [*story.prompt, *story.completion]
    choices = []
    for span, one in zip(story.spans, story.rules(rule), strict=True):
        whole = Span(len(story.prompt) + span.start, len(story.prompt) + span.end)

        def judged(candidate: Candidate, span: Span = whole) -> Judged:
            kls = defined_kls(token_ids, span, candidate.token_ids, WINDOW)
            mean = sum(kls) / max(1, len(kls))
            return Judged(mean, not kls or mean < kl_bound)

        try:
            wanted = next(one)
            while True:
                wanted = one.send([judged(candidate) for candidate in wanted])
        except StopIteration as end:
            choices.append(end.value)
    return choices


def kept(choices: Sequence[Choice]) -> list[tuple[list[int] | None, int]]:
    return [(choice.candidate.token_ids if choice.candidate else None, choice.num_scored) for choice in choices]


def judging(kl_bound: float, *, check_rest: bool = False) -> Judging:
    return Judging(Bound(kl_bound), WINDOW, CONTEXT, check_rest)


def choices_of(judged: Sequence[Sequence[JudgedStep]]) -> list[Choice]:
    return [step.choice for trace in judged for step in trace]


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=4, unique=True),
    rule=st.sampled_from(["kl_bound", "reliable"]),
    kl_bound=st.sampled_from([1e-6, 0.02, 0.1, 0.3, 1.0, 1e6]),
    max_batch_tokens=st.sampled_from([1, 30, 2048]),
    first_positions=st.sampled_from([1, 3, 16]),
)
def test_what_is_shared_or_left_out_changes_no_choice(
    seeds: list[int], rule: str, kl_bound: float, max_batch_tokens: int, first_positions: int
) -> None:
    stories = [Story(seed) for seed in seeds]
    expected = [choice for story in stories for choice in alone(story, rule, kl_bound)]
    scorer = WindowScorer(MODEL, max_batch_tokens=max_batch_tokens, first_positions=first_positions, growth=2)
    found = choices_of(judge_steps(scorer, [story.steps(rule) for story in stories], judging(kl_bound)))
    assert kept(found) == kept(expected)
    assert [choice.kl for choice in found] == pytest.approx([choice.kl for choice in expected], rel=1e-3, abs=1e-6)
    assert [choice.reliability for choice in found] == [choice.reliability for choice in expected]


def test_the_stories_hold_steps_that_are_rewritten_and_steps_that_are_not() -> None:
    choices = [choice for seed in range(30) for choice in alone(Story(seed), "kl_bound", 0.1)]
    rewritten = [choice.candidate is not None for choice in choices]
    assert 5 < sum(rewritten) < len(rewritten) - 5


def test_few_live_traces_choose_like_many(monkeypatch: pytest.MonkeyPatch) -> None:
    stories = [Story(seed) for seed in range(6)]
    together = judge_steps(WindowScorer(MODEL), [story.steps("kl_bound") for story in stories], judging(0.1))
    monkeypatch.setattr("tokensqueeze.rewriters.judge_steps._LIVE_TOKENS", 1)
    apart = judge_steps(WindowScorer(MODEL), [story.steps("kl_bound") for story in stories], judging(0.1))
    assert kept(choices_of(apart)) == kept(choices_of(together))


def test_a_trace_without_steps_and_no_traces_at_all_are_fine() -> None:
    assert judge_steps(WindowScorer(MODEL), [TraceSteps([1], [2, 3], [])], judging(0.1)) == [[]]
    assert judge_steps(WindowScorer(MODEL), [], judging(0.1)) == []


def test_a_candidate_with_no_room_in_the_context_fails_and_the_others_are_judged() -> None:
    prompt, completion = [1, 2], list(range(3, 20))
    long = Candidate("long", [5] * (CONTEXT - 12), 1, 0)
    fits = Candidate("fits", [6, 7], 1, 1)
    rule = reliable("step", completion[2:6], [long, fits], min_reliability=0.0, min_form_draws=1)
    ((step,),) = judge_steps(WindowScorer(MODEL), [TraceSteps(prompt, completion, [(Span(2, 6), rule)])], judging(1e6))
    assert step.choice.candidate == fits
    assert step.choice.num_scored == 2


def test_what_was_kept_is_judged_over_the_whole_rest_where_that_is_asked_for() -> None:
    story = Story(3)
    asked = replace(judging(1e6), check_rest=True)
    judged = judge_steps(WindowScorer(MODEL), [story.steps("kl_bound")], asked)[0]
    token_ids = [*story.prompt, *story.completion]
    changed = 0
    for span, step in zip(story.spans, judged, strict=True):
        if not step.choice.candidate:
            assert step.rest is None
            continue
        changed += 1
        whole = Span(len(story.prompt) + span.start, len(story.prompt) + span.end)
        kls = defined_kls(token_ids, whole, step.choice.candidate.token_ids, 1000)
        assert len(kls) == len(token_ids) - whole.end
        assert step.rest is not None and step.rest.passes
        assert step.rest.kl == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    assert changed
    # Over a bound that only the window keeps, the rest says so; the decision stands.
    tight = max(step.choice.kl for step in judged) * 1.0001
    again = judge_steps(WindowScorer(MODEL), [story.steps("kl_bound")], replace(asked, bound=Bound(tight)))[0]
    for step in again:
        if step.rest:
            assert step.rest.passes == (step.rest.kl < tight)


def test_a_bound_relative_to_entropy_lets_through_what_is_below_that_share() -> None:
    story = Story(3)
    token_ids = [*story.prompt, *story.completion]
    with torch.inference_mode():
        log_p = torch.log_softmax(MODEL(input_ids=torch.tensor([token_ids])).logits[0].double(), dim=-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    for share in (0.005, 0.02, 0.1):
        relative = Judging(Bound(share, scale="entropy"), WINDOW, CONTEXT)
        judged = judge_steps(WindowScorer(MODEL), [story.steps("kl_bound")], relative)[0]
        for span, candidates, step in zip(story.spans, story.candidates, judged, strict=True):
            whole = Span(len(story.prompt) + span.start, len(story.prompt) + span.end)
            limit = share * float(entropy[whole.end - 1 : whole.end - 1 + WINDOW][: len(token_ids) - whole.end].sum())
            shorter = [c for c in candidates if len(c.token_ids) < len(span)]
            passing = [len(c.token_ids) for c in shorter if sum(defined_kls(token_ids, whole, c.token_ids, WINDOW)) < limit]
            chosen = step.choice.candidate
            assert (len(chosen.token_ids) if chosen else None) == min(passing, default=None)
