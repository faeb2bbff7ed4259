"""Accuracy and length by difficulty: what squeezing does to problems that the base model solves always, or never.

Difficulty is the base model's pass rate. Take it from other samples than those measured where there are any: problems
that came out right did so partly by luck, and the same samples would show the base model too good on them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tokensqueeze.errors import TableError
from tokensqueeze.metrics.intervals import clustered_mean
from tokensqueeze.schema import EvaluationTrace, VerifiedTrace

BINS = ("0", "(0, 0.25]", "(0.25, 0.5]", "(0.5, 0.75]", "(0.75, 1)", "1")
"""Base pass rates, hardest first."""


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


def pass_rates(traces: Sequence[VerifiedTrace]) -> dict[str, float]:
    """Return the share of correct traces of each problem."""
    problems = _by_problem(traces)
    return {problem_id: fmean(trace.verdict == "correct" for trace in own) for problem_id, own in problems.items()}


def by_difficulty(traces: Sequence[EvaluationTrace], base_pass_rates: Mapping[str, float]) -> list[DifficultyBin]:
    """Return the bins that hold a problem, hardest first.

    Raises `TableError` for a problem whose base pass rate is not known.
    """
    binned = defaultdict[str, list[Sequence[EvaluationTrace]]](list)
    for problem_id, own in _by_problem(traces).items():
        if problem_id not in base_pass_rates:
            raise TableError(
                f"problem {problem_id!r} has no base pass rate, so no difficulty; evaluate the base model on the same problems"
            )
        binned[bin_label(base_pass_rates[problem_id])].append(own)
    return [_bin(label, binned[label]) for label in BINS if label in binned]


def bin_label(pass_rate: float) -> str:
    if pass_rate in (0, 1):
        return BINS[0] if pass_rate == 0 else BINS[-1]
    return BINS[1 + sum(pass_rate > edge for edge in (0.25, 0.5, 0.75))]


def _bin(label: str, problems: Sequence[Sequence[EvaluationTrace]]) -> DifficultyBin:
    accuracy = clustered_mean([fmean(trace.verdict == "correct" for trace in own) for own in problems])
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


def _by_problem(traces: Sequence[VerifiedTrace]) -> dict[str, list]:
    by_problem = defaultdict[str, list](list)
    for trace in traces:
        by_problem[trace.problem_id].append(trace)
    return by_problem
