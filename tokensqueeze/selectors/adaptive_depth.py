"""Keep traces whose depth fits the problem's difficulty (paper section 3.1)."""

import math
from collections.abc import Sequence

from tokensqueeze.schema import VerifiedTrace
from tokensqueeze.selectors.shortest_correct import correct_shortest_first


def adaptive_depth(traces: Sequence[VerifiedTrace], *, alpha: float) -> list[VerifiedTrace]:
    """Return the k = ⌈α·(1 − p)·c⌉ shortest of a problem's c correct traces; at least one if any is correct.

    p = c / N is the pass rate: an easy problem keeps only its very shortest traces, a hard one a wider, longer band. The
    formula gives k = 0 at p = 1 and at α = 0; keeping one there is our reading.
    """
    correct = correct_shortest_first(traces)
    wrong_share = 1 - len(correct) / len(traces) if traces else 0.0
    return shortest_share(correct, alpha * wrong_share)


def shortest_share(correct: Sequence[VerifiedTrace], share: float) -> list[VerifiedTrace]:
    # Rounding first: 0.2 × 0.5 × 10 must be one trace, whatever the last bit of its float says.
    return list(correct[: max(1, math.ceil(round(share * len(correct), 9)))])
