"""What a rewriter decides about one step, and how it may ask for scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokensqueeze.schema import Candidate

Score = Callable[[Sequence[Candidate]], list[float]]
"""Returns each candidate's KL against the original step, in nats, reduced as the settings say."""


@dataclass(frozen=True)
class Choice:
    """`candidate` is None where the original step stays."""

    candidate: Candidate | None
    kl: float
    num_scored: int
    reliability: float | None = None


def keep_original(num_scored: int, reliability: float | None = None) -> Choice:
    return Choice(None, 0.0, num_scored, reliability)
