"""Keep the same share of every problem's correct traces: the paper's ablation of adaptive depth."""

from collections.abc import Sequence

from tokensqueeze.schema import VerifiedTrace
from tokensqueeze.selectors.adaptive_depth import shortest_share
from tokensqueeze.selectors.shortest_correct import correct_shortest_first


def fixed_quantile(traces: Sequence[VerifiedTrace], *, quantile: float) -> list[VerifiedTrace]:
    """Return the ⌈q·c⌉ shortest of a problem's c correct traces; at least one if any is correct."""
    return shortest_share(correct_shortest_first(traces), quantile)
