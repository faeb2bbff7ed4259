"""pass@k: how likely at least one of k samples is right, estimated without bias from n ≥ k samples of each problem.

Chen et al., Evaluating Large Language Models Trained on Code (arXiv 2107.03374), equation 1.
"""

from math import prod


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return 1 − C(n − c, k) / C(n, k), as the product ∏ (1 − k/i) over i = n − c + 1 … n, which overflows for no n."""
    if num_samples - num_correct < k:
        return 1.0
    return 1 - prod(1 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def measurable_k(fewest_samples: int) -> list[int]:
    """Return the powers of two that every problem has samples for."""
    return [2**power for power in range(fewest_samples.bit_length())]
