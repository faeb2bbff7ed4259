"""Standard errors with the problem as the unit of chance: samples of one problem are alike, and count as one cluster.

Every function takes one entry per problem. With fewer than two problems a standard error is not known, and is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from statistics import fmean, stdev

# Below this share of the sum, what is left of a denominator is rounding and not data.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    value: float
    standard_error: float | None


def clustered_mean(problem_means: Sequence[float]) -> Estimate:
    """Return the mean over problems of per-problem means; its standard error is sd/√n with n problems."""
    n = len(problem_means)
    return Estimate(fmean(problem_means), stdev(problem_means) / sqrt(n) if n > 1 else None)


def clustered_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate | None:
    """Return the ratio of two sums over the same problems; its standard error is the jackknife's over problems.

    None when the denominators sum to 0. The error is None when a single problem holds all of the denominator.
    """
    n, top, bottom = len(numerators), fsum(numerators), fsum(denominators)
    if bottom == 0:
        return None
    rests = [(top - x, bottom - y) for x, y in zip(numerators, denominators, strict=True)]
    if n < 2 or any(abs(y) <= _ROUNDING * abs(bottom) for _, y in rests):
        return Estimate(top / bottom, None)
    left_out = [x / y for x, y in rests]
    centre = fmean(left_out)
    return Estimate(top / bottom, sqrt((n - 1) / n * fsum((ratio - centre) ** 2 for ratio in left_out)))
