"""Accuracy under a token budget: the curve, and the area under it.

A sample counts at a budget b when it is correct and no longer than b. Averaged over all b from 0 to B, a sample of
length ℓ gives 1(correct)·(1 − ℓ/B), and so AUC = Acc·(1 − Len-T/B) (TokenSqueeze, arXiv 2511.13223, section 4.1.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from tokensqueeze.errors import TableError
from tokensqueeze.metrics.bootstrap import percentile_interval, resampled_means
from tokensqueeze.metrics.by_problem import by_problem, is_correct, problem_means
from tokensqueeze.schema import EvaluationTrace, ForcedTrace


@dataclass(frozen=True)
class BudgetCurve:
    """Accuracy at each budget, every problem weighing the same, with 95 % intervals (None where chance shows nothing)."""

    budgets: list[int]
    """In tokens of the whole completion."""
    accuracy: list[float]
    intervals: list[list[float] | None]


@dataclass(frozen=True)
class ForcedPoint:
    """Accuracy when thinking is closed at a budget; the lengths are means in tokens."""

    thinking_budget: int
    accuracy: float
    interval: list[float] | None
    length: float
    """Of whole completions: thinking that ends by itself costs less than its budget, and the answer comes on top."""
    forced: float
    """Share of the samples whose thinking had to be closed."""
    num_samples: int


def auc(correct: Sequence[bool], lengths: Sequence[int], budget: int) -> float:
    """Return the area under accuracy against token budget, between 0 and 1; lengths and budget in tokens.

    Raises `TableError` for no samples.
    """
    _check_not_empty(correct)
    return fmean(sample_auc(right, length, budget) for right, length in zip(correct, lengths, strict=True))


def sample_auc(correct: bool, length: int, budget: int) -> float:
    """Return one sample's share of the area: 0 when it is wrong or has used up the budget."""
    return max(0.0, 1 - length / budget) if correct else 0.0


def accuracy_at_budgets(correct: Sequence[bool], lengths: Sequence[int], budgets: Sequence[int]) -> list[float]:
    """Return for each budget the share of samples that are correct within it. Raises `TableError` for no samples."""
    _check_not_empty(correct)
    samples = list(zip(correct, lengths, strict=True))
    return [fmean(right and length <= budget for right, length in samples) for budget in budgets]


def budget_curve(traces: Sequence[EvaluationTrace], budgets: Sequence[int]) -> BudgetCurve:
    """Measure accuracy at many budgets. Raises `TableError` for no traces."""
    problems = by_problem(traces)
    accuracy_FP = np.array(
        [
            accuracy_at_budgets([is_correct(trace) for trace in own], [trace.num_tokens for trace in own], budgets)
            for own in problems.values()
        ]
    ).T
    resampled_RF = resampled_means(accuracy_FP)
    return BudgetCurve(
        budgets=list(budgets),
        accuracy=[fmean(at_budget) for at_budget in accuracy_FP.tolist()],
        intervals=[percentile_interval(column) for column in resampled_RF.T],
    )


def forced_curve(traces: Sequence[ForcedTrace]) -> list[ForcedPoint]:
    """Measure accuracy at each thinking budget that the traces have, smallest first."""
    return [
        _forced_point(budget, [trace for trace in traces if trace.thinking_budget == budget])
        for budget in sorted({trace.thinking_budget for trace in traces})
    ]


def _forced_point(budget: int, traces: Sequence[ForcedTrace]) -> ForcedPoint:
    problems = by_problem(traces)
    accuracy = problem_means(problems, is_correct)
    return ForcedPoint(
        thinking_budget=budget,
        accuracy=fmean(accuracy),
        interval=percentile_interval(resampled_means([accuracy])[:, 0]),
        length=fmean(problem_means(problems, lambda trace: trace.num_tokens)),
        forced=fmean(problem_means(problems, lambda trace: trace.was_forced)),
        num_samples=len(traces),
    )


def _check_not_empty(samples: Sequence[bool]) -> None:
    if not samples:
        raise TableError("no evaluation traces to measure; the evaluation needs at least one problem with one sample")
