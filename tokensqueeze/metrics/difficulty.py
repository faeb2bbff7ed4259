"""Accuracy and length by difficulty: what squeezing does to problems that the base model solves always, or never.

Difficulty is the base model's pass rate, or a level that the data set gives. Take the pass rate from other samples than
those measured: problems that came out right did so partly by luck, and the same samples would show the base model too
good on them (regression to the mean).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tokensqueeze.errors import TableError
from tokensqueeze.metrics.by_problem import by_problem, is_correct
from tokensqueeze.metrics.intervals import clustered_mean
from tokensqueeze.schema import EvaluationTrace, VerifiedTrace

BINS = ("0", "(0, 0.25]", "(0.25, 0.5]", "(0.5, 0.75]", "(0.75, 1)", "1")
"""Base pass rates, hardest first."""
NO_LEVEL = "no level"


@dataclass(frozen=True)
class DifficultyBin:
    """The problems of one bin; lengths in tokens, standard errors clustered by problem (None for a single problem)."""

    label: str
    accuracy: float
    accuracy_se: float | None
    length: float
    length_se: float | None
    num_problems: int
    num_samples: int


@dataclass(frozen=True)
class SortedApart:
    """A model's pass rates by half of its samples, and the other half, which is as good as new to them."""

    pass_rates: dict[str, float]
    measured: list[EvaluationTrace]


def pass_rates(traces: Sequence[VerifiedTrace]) -> dict[str, float]:
    """Return the share of correct traces of each problem."""
    return {problem_id: fmean(map(is_correct, own)) for problem_id, own in by_problem(traces).items()}


def sorted_apart(traces: Sequence[EvaluationTrace]) -> SortedApart | None:
    """Sort problems by every second sample, from the first on, and keep the rest; None if a problem has but one sample."""
    sorting: list[EvaluationTrace] = []
    measured: list[EvaluationTrace] = []
    for own in by_problem(traces).values():
        if len(own) < 2:
            return None
        in_order = sorted(own, key=lambda trace: trace.sample_index)
        sorting += in_order[::2]
        measured += in_order[1::2]
    return SortedApart(pass_rates(sorting), measured)


def measured_half(traces: Sequence[EvaluationTrace]) -> list[EvaluationTrace]:
    """Return another model's samples that share no random stream with those that sorted; a problem's only sample stays.

    With shared streams its luck is that of the sorting samples: even the very same model would look different.
    """
    ordered = (sorted(own, key=lambda trace: trace.sample_index) for own in by_problem(traces).values())
    return [trace for own in ordered for trace in own[1::2] or own]


def by_difficulty(traces: Sequence[EvaluationTrace], base_pass_rates: Mapping[str, float]) -> list[DifficultyBin]:
    """Return the bins that hold a problem, hardest first.

    Raises `TableError` for a problem whose base pass rate is not known.
    """
    problems = by_problem(traces)
    unknown = problems.keys() - base_pass_rates.keys()
    if unknown:
        raise TableError(
            f"problem {min(unknown)!r} has no base pass rate, so no difficulty; evaluate the base model on the same problems"
        )
    return _bins(problems, {problem_id: bin_label(base_pass_rates[problem_id]) for problem_id in problems}, BINS)


def by_level(traces: Sequence[EvaluationTrace], levels: Mapping[str, str | None]) -> list[DifficultyBin]:
    """Return one bin per level of the data set, lowest first, problems without one last; nothing if none has a level."""
    problems = by_problem(traces)
    labels = {problem_id: levels.get(problem_id) or NO_LEVEL for problem_id in problems}
    if set(labels.values()) == {NO_LEVEL}:
        return []
    return _bins(problems, labels, sorted(set(labels.values()), key=_level_order))


def bin_label(pass_rate: float) -> str:
    if pass_rate in (0, 1):
        return BINS[0] if pass_rate == 0 else BINS[-1]
    return BINS[1 + sum(pass_rate > edge for edge in (0.25, 0.5, 0.75))]


def _level_order(label: str) -> tuple[bool, float, str]:
    """Order `Level 2` before `Level 10`, and words by the alphabet."""
    number = re.search(r"\d+", label)
    return label == NO_LEVEL, float(number[0]) if number else 0.0, label


def _bins(
    problems: Mapping[str, Sequence[EvaluationTrace]], labels: Mapping[str, str], order: Iterable[str]
) -> list[DifficultyBin]:
    binned = defaultdict[str, list[Sequence[EvaluationTrace]]](list)
    for problem_id, own in problems.items():
        binned[labels[problem_id]].append(own)
    return [_bin(label, binned[label]) for label in order if label in binned]


def _bin(label: str, problems: Sequence[Sequence[EvaluationTrace]]) -> DifficultyBin:
    accuracy = clustered_mean([fmean(map(is_correct, own)) for own in problems])
    length = clustered_mean([fmean(trace.num_tokens for trace in own) for own in problems])
    return DifficultyBin(
        label=label,
        accuracy=accuracy.value,
        accuracy_se=accuracy.standard_error,
        length=length.value,
        length_se=length.standard_error,
        num_problems=len(problems),
        num_samples=sum(map(len, problems)),
    )
