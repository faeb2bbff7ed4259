"""Is a difference between two models chance? Tests on the same problems, paired by problem.

If the two models were alike, each problem's difference could as well have had the other sign. The p-value is the share of
sign patterns whose sum is at least as far from 0 as the one seen (Fisher's randomisation test, two-sided). Samples of one
problem may be as alike as they please: their mean is one difference.
"""

from collections.abc import Iterator, Sequence

import numpy as np

DRAWS = 20_000
_MOST_EXACT = 15
"""Problems with a difference, up to which all 2ⁿ patterns are counted."""
_CHUNK = 1000
# Sums that are equal but for rounding are equal.
_ROUNDING = 1e-12


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of per-problem differences; None for fewer than two problems.

    Above 15 differences that are not 0 it comes from 20,000 seeded draws, counting the pattern seen among them, so that
    it is never 0 and the test never claims more than its level.
    """
    if len(differences) < 2:
        return None
    moved_P = np.array([difference for difference in differences if difference], dtype=float)
    if not len(moved_P):
        return 1.0
    seen = abs(moved_P.sum()) - _ROUNDING * np.abs(moved_P).sum()
    exact = len(moved_P) <= _MOST_EXACT
    patterns = _all_patterns(len(moved_P)) if exact else _drawn_patterns(len(moved_P))
    # einsum adds in one thread and one order; BLAS would not.
    extreme = sum(int((np.abs(np.einsum("dp,p->d", signs_DP, moved_P)) >= seen).sum()) for signs_DP in patterns)
    return extreme / 2 ** len(moved_P) if exact else (extreme + 1) / (DRAWS + 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for being several (Holm's step-down), so that 0.05 bounds the chance of any false alarm.

    Unknown ones stay unknown and do not count.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = highest
    return adjusted


def _all_patterns(num_problems: int) -> Iterator[np.ndarray]:
    codes = np.arange(2**num_problems)[:, None]
    yield 1.0 - 2.0 * ((codes >> np.arange(num_problems)) & 1)


def _drawn_patterns(num_problems: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    for _ in range(DRAWS // _CHUNK):
        yield 1.0 - 2.0 * random.integers(0, 2, (_CHUNK, num_problems), dtype=np.int8)
