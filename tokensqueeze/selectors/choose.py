"""Apply the selector that the settings name to one problem's traces."""

from collections.abc import Sequence
from typing import assert_never

from tokensqueeze.config import AdaptiveDepth, FixedQuantile, RandomCorrect, ReliableShortest, SelectorSettings, Shortest
from tokensqueeze.schema import VerifiedTrace
from tokensqueeze.selectors.adaptive_depth import adaptive_depth
from tokensqueeze.selectors.fixed_quantile import fixed_quantile
from tokensqueeze.selectors.random_correct import random_correct
from tokensqueeze.selectors.reliable_shortest import reliable_shortest
from tokensqueeze.selectors.shortest_correct import shortest_correct


def choose_traces(selector: SelectorSettings, traces: Sequence[VerifiedTrace]) -> list[VerifiedTrace]:
    """Return the traces of one problem that are worth learning from, shortest first."""
    match selector:
        case AdaptiveDepth():
            return adaptive_depth(traces, alpha=selector.alpha)
        case Shortest():
            return shortest_correct(traces)
        case FixedQuantile():
            return fixed_quantile(traces, quantile=selector.quantile)
        case ReliableShortest():
            return reliable_shortest(traces, min_reliability=selector.min_reliability)
        case RandomCorrect():
            return random_correct(traces)
        case _:
            assert_never(selector)
