"""95 % intervals by a bootstrap over problems: samples of one problem are alike, so problems are drawn, never samples.

The draws are seeded and depend on the number of problems alone, so equal data give equal intervals. Percentile
intervals are a little too narrow for few problems.

R resamples, F figures, P problems.
"""

from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 2000
_TAILS = (0.025, 0.975)
# Resamples that are counted at once: bounds the memory for many problems.
_CHUNK = 200
# A figure must be there in this share of the resamples: without the rest, the tails would not be the 95 % they claim.
_LEAST_KNOWN = 0.95
# Below this share of the values, a width is rounding and not chance.
_ROUNDING = 1e-12


def mean_interval(problem_values: Sequence[float]) -> list[float] | None:
    """Return [low, high] for the mean over problems; None where no resample can differ from the data."""
    return percentile_interval(resampled_means([problem_values])[:, 0])


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> list[float] | None:
    """Return [low, high] for the ratio of two sums over the same problems."""
    means_RF = resampled_means([numerators, denominators])
    return percentile_interval(ratio(means_RF[:, 0], means_RF[:, 1]))


def resampled_means(values_FP: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Return the mean over problems of each figure, in each resample: R × F. All figures share the draws."""
    figures_FP = np.ascontiguousarray(values_FP, dtype=float)
    num_problems = figures_FP.shape[1]
    # einsum adds in one thread and one order; BLAS would not.
    parts = [np.einsum("rp,fp->rf", counts_RP, figures_FP) for counts_RP in _draws(num_problems)]
    return np.concatenate(parts) / num_problems


def ratio(numerators_R: np.ndarray, denominators_R: np.ndarray) -> np.ndarray:
    """Return the ratio in each resample, NaN where there is nothing to divide by."""
    known_R = denominators_R > 0
    return np.where(known_R, numerators_R / np.where(known_R, denominators_R, 1), np.nan)


def percentile_interval(resampled_R: np.ndarray) -> list[float] | None:
    """Return [low, high]; None where the figure is missing in too many resamples, or the same in all."""
    known_R = resampled_R[np.isfinite(resampled_R)]
    if len(known_R) < _LEAST_KNOWN * len(resampled_R) or np.ptp(known_R) <= _ROUNDING * np.abs(known_R).max():
        return None
    return [float(edge) for edge in np.quantile(known_R, _TAILS)]


def _draws(num_problems: int) -> Iterator[np.ndarray]:
    """Yield how often each problem is drawn in each of a chunk of resamples."""
    random = np.random.default_rng(0)
    for start in range(0, RESAMPLES, _CHUNK):
        rows = min(_CHUNK, RESAMPLES - start)
        drawn_RP = random.integers(0, num_problems, (rows, num_problems)) + num_problems * np.arange(rows)[:, None]
        counts = np.bincount(drawn_RP.ravel(), minlength=rows * num_problems)
        yield counts.reshape(rows, num_problems).astype(float)
