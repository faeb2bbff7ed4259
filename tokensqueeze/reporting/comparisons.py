"""Which traces a reader is shown side by side, and what differs between them: extremes, the middle, the failures."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokensqueeze.config import RewriterSettings
from tokensqueeze.reporting.refinement import TurnedDown, kl_on_the_rest, turned_down
from tokensqueeze.schema import Decoding, EvaluationTrace, RefinedTrace, StepDecision

_MOST_STEPS = 40
_MOST_TURNED_DOWN = 8
_MOST_CHARACTERS = 4000
_UNCHANGED_NEIGHBOURS = 1


@dataclass(frozen=True)
class Piece:
    """A stretch of a step's text; `changed` where the other side has something else."""

    text: str
    changed: bool


@dataclass(frozen=True)
class Tried:
    """A candidate that was turned down, beside the step as sampled."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    candidate: TurnedDown


@dataclass(frozen=True)
class StepComparison:
    """One step before and after; or, where `skipped` is above 0, so many steps that did not change."""

    number: int = 0
    before: tuple[Piece, ...] = ()
    after: tuple[Piece, ...] = ()
    rewritten: bool = False
    saved_tokens: int = 0
    kl: float = 0.0
    reliability: float | None = None
    rest_kl: float | None = None
    rest_passes: bool | None = None
    tried: Tried | None = None
    skipped: int = 0


@dataclass(frozen=True)
class RefinementExample:
    label: str
    trace: RefinedTrace
    steps: tuple[StepComparison, ...]
    steps_left_out: int


@dataclass(frozen=True)
class AnswerExample:
    """The two models' answers to one held-out question; `how_often` says how common this outcome is."""

    label: str
    how_often: str
    problem_id: str
    base: EvaluationTrace
    squeezed: EvaluationTrace


def refinement_examples(traces: Sequence[RefinedTrace], rewriter: RewriterSettings) -> list[RefinementExample]:
    """Return the biggest saving, the median and the most lengthened trace, of those that were rewritten at all.

    Where none of them has a step that stayed although a candidate was tried, the trace with the most such steps joins them.
    """
    rewritten = [trace for trace in traces if any(decision.rewritten for decision in trace.decisions)]
    by_saving = sorted(rewritten, key=lambda trace: (saved_tokens(trace), trace.trace_id))
    chosen: list[tuple[str, RefinedTrace]] = []
    if by_saving:
        chosen = [("Biggest saving", by_saving[-1]), ("Typical: the median saving", by_saving[len(by_saving) // 2])]
        if saved_tokens(by_saving[0]) < 0:
            chosen.append(("Became longer", by_saving[0]))
    examples, seen = [], set()
    for label, trace in chosen:
        if trace.trace_id not in seen:
            examples.append(_refinement_example(label, trace, rewriter))
            seen.add(trace.trace_id)
    if not any(step.tried and not step.rewritten for example in examples for step in example.steps):
        stayed = {trace.trace_id: _num_stayed(trace, rewriter) for trace in traces}
        most = max(traces, key=lambda trace: (stayed[trace.trace_id], trace.trace_id), default=None)
        if most and stayed[most.trace_id] and most.trace_id not in seen:
            examples.append(_refinement_example("Most steps that stayed, though a candidate was tried", most, rewriter))
    return examples


def saved_tokens(trace: RefinedTrace) -> int:
    """Tokens that refinement took away from a trace; below 0 where it became longer."""
    return trace.original_num_tokens - trace.num_tokens


def answer_examples(base: Sequence[EvaluationTrace], squeezed: Sequence[EvaluationTrace]) -> list[AnswerExample]:
    """Return a few held-out problems with both models' answers: savings, and each way in which one of them fails.

    Greedy answers where there are any, since a problem has just one of them; else each problem's first sample.
    """
    pairs = _paired(base, squeezed, "greedy") or _paired(base, squeezed, "sampled")
    groups: dict[tuple[bool, bool], list[tuple[EvaluationTrace, EvaluationTrace]]] = {}
    for before, after in pairs:
        groups.setdefault((before.verdict == "correct", after.verdict == "correct"), []).append((before, after))
    for group in groups.values():
        group.sort(key=lambda pair: (pair[0].num_tokens - pair[1].num_tokens, pair[0].problem_id))
    both, mended = groups.get((True, True), []), groups.get((False, True), [])
    broken, neither = groups.get((True, False), []), groups.get((False, False), [])
    picks: list[tuple[str, list[tuple[EvaluationTrace, EvaluationTrace]], int]] = [
        ("Both right: the median saving", both, len(both) // 2),
        ("Both right: the biggest saving", both, len(both) - 1),
        ("Only the squeezed model is right", mended, len(mended) // 2),
        ("Only the base is right", broken, len(broken) // 2),
        ("Neither is right", neither, len(neither) // 2),
    ]
    examples, seen = [], set()
    for label, group, index in picks:
        if group and group[index][0].problem_id not in seen:
            before, after = group[index]
            seen.add(before.problem_id)
            how_often = f"{len(group):,} of {len(pairs):,} held-out problems end so"
            examples.append(AnswerExample(label, how_often, before.problem_id, before, after))
    return examples


def compare_texts(before: str, after: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Mark the words that differ between two texts."""
    words_before, words_after = re.findall(r"\s*\S+\s*", before), re.findall(r"\s*\S+\s*", after)
    left: list[Piece] = []
    right: list[Piece] = []
    matcher = difflib.SequenceMatcher(a=words_before, b=words_after, autojunk=False)
    for operation, i1, i2, j1, j2 in matcher.get_opcodes():
        changed = operation != "equal"
        left += [Piece("".join(words_before[i1:i2]), changed)] if i2 > i1 else []
        right += [Piece("".join(words_after[j1:j2]), changed)] if j2 > j1 else []
    return tuple(left), tuple(right)


def split_answer(text: str, think_end: str) -> tuple[str, str]:
    """Split a completion into its thinking, end tag included, and the answer; long thinking is cut in its middle."""
    head, tag, answer = text.rpartition(think_end)
    thinking, answer = (head + tag, answer) if tag else (text, "")
    if len(thinking) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        left_out = len(thinking) - 2 * half
        thinking = f"{thinking[:half]}\n\n[… {left_out:,} characters left out …]\n\n{thinking[-half:]}"
    return thinking.strip(), answer.strip()[-_MOST_CHARACTERS:]


def _refinement_example(label: str, trace: RefinedTrace, rewriter: RewriterSettings) -> RefinementExample:
    """Compare the steps; unchanged ones far from a change are skipped, and so is what would not fit."""
    decisions = trace.decisions
    near = {
        index + offset
        for index, decision in enumerate(decisions)
        if decision.rewritten
        for offset in range(-_UNCHANGED_NEIGHBOURS, _UNCHANGED_NEIGHBOURS + 1)
    } & set(range(len(decisions)))
    end = sorted(near)[_MOST_STEPS] if len(near) > _MOST_STEPS else len(decisions)
    tried = _nearest_turned_down(decisions[:end], rewriter)
    steps: list[StepComparison] = []
    skipped = 0
    for index, decision in enumerate(decisions[:end]):
        if index not in near and index not in tried:
            skipped += 1
            continue
        if skipped:
            steps.append(StepComparison(skipped=skipped))
            skipped = 0
        steps.append(_step_comparison(decision, tried.get(index)))
    if skipped:
        steps.append(StepComparison(skipped=skipped))
    return RefinementExample(label, trace, tuple(steps), len(decisions) - end)


def _nearest_turned_down(decisions: Sequence[StepDecision], rewriter: RewriterSettings) -> dict[int, TurnedDown]:
    """Return by step what came nearest to being accepted, steps that stayed first; as many as a reader may want to see."""
    found = {index: candidate for index, decision in enumerate(decisions) if (candidate := turned_down(decision, rewriter))}

    def distance(index: int) -> tuple[bool, float, float, int]:
        candidate = found[index]
        # Whatever has a reliability is within the bound, and nearer than all that is over it.
        return decisions[index].rewritten, -(candidate.reliability or 0.0), candidate.kl, index

    return {index: found[index] for index in sorted(found, key=distance)[:_MOST_TURNED_DOWN]}


def _num_stayed(trace: RefinedTrace, rewriter: RewriterSettings) -> int:
    return sum(not decision.rewritten and turned_down(decision, rewriter) is not None for decision in trace.decisions)


def _step_comparison(decision: StepDecision, candidate: TurnedDown | None) -> StepComparison:
    original = decision.original_text.strip()
    before, after = compare_texts(original, decision.kept_text.strip())
    return StepComparison(
        number=decision.step_index + 1,
        before=before,
        after=after,
        rewritten=decision.rewritten,
        saved_tokens=decision.original_tokens - decision.kept_tokens,
        kl=decision.kl,
        reliability=decision.reliability,
        rest_kl=kl_on_the_rest(decision),
        rest_passes=decision.rest_passes,
        tried=Tried(*compare_texts(original, candidate.text.strip()), candidate) if candidate else None,
    )


def _paired(
    base: Sequence[EvaluationTrace], squeezed: Sequence[EvaluationTrace], decoding: Decoding
) -> list[tuple[EvaluationTrace, EvaluationTrace]]:
    """Pair the models' first answers to the same problem."""
    first_squeezed = _first_answers(squeezed, decoding)
    return [
        (trace, first_squeezed[problem_id])
        for problem_id, trace in sorted(_first_answers(base, decoding).items())
        if problem_id in first_squeezed
    ]


def _first_answers(traces: Sequence[EvaluationTrace], decoding: Decoding) -> Mapping[str, EvaluationTrace]:
    firsts: dict[str, EvaluationTrace] = {}
    for trace in sorted(traces, key=lambda trace: trace.sample_index):
        if trace.decoding == decoding:
            firsts.setdefault(trace.problem_id, trace)
    return firsts
