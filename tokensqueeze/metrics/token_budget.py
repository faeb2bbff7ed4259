"""Accuracy under a token budget: the curve, and the area under it.

A sample counts at a budget b when it is correct and no longer than b. Averaged over all b from 0 to B, a sample of
length ℓ gives 1(correct)·(1 − ℓ/B), and so AUC = Acc·(1 − Len-T/B) (TokenSqueeze, arXiv 2511.13223, section 4.1.2).
"""

from collections.abc import Sequence
from statistics import fmean

from tokensqueeze.errors import TableError


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


def _check_not_empty(samples: Sequence[bool]) -> None:
    if not samples:
        raise TableError("no evaluation traces to measure; the evaluation needs at least one problem with one sample")
