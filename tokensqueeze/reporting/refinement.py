"""What refinement turned down, and by which measure; and whether what it accepted holds beyond the window."""

from dataclasses import dataclass
from typing import Literal

from tokensqueeze.config import RewriterSettings
from tokensqueeze.schema import StepDecision

Reason = Literal["over the KL bound", "form not reliable enough", "form drawn too seldom"]


@dataclass(frozen=True)
class TurnedDown:
    """The candidate that came nearest among those turned down for one step."""

    text: str
    saved_tokens: int
    """Against the step as sampled; below 0 where the candidate is longer."""
    kl: float
    reliability: float | None
    reason: Reason

    @property
    def kl_is_known(self) -> bool:
        """Over the bound a candidate is read no further: its `kl` is then only the least that it can be."""
        return self.reason != "over the KL bound"


def turned_down(decision: StepDecision, rewriter: RewriterSettings) -> TurnedDown | None:
    """Return the nearest candidate that was turned down, if one is recorded."""
    text, tokens, kl = decision.rejected_text, decision.rejected_tokens, decision.rejected_kl
    if text is None or tokens is None or kl is None:
        return None
    reliability = decision.rejected_reliability
    reason: Reason = "over the KL bound"
    if reliability is not None:
        # What is reliable and shorter is kept, unless there are too few draws to believe it.
        unproven = rewriter.name == "reliable" and reliability >= rewriter.min_reliability
        reason = "form drawn too seldom" if unproven else "form not reliable enough"
    return TurnedDown(text, decision.original_tokens - tokens, kl, reliability, reason)


def kl_on_the_rest(decision: StepDecision) -> float | None:
    """Return the KL of a rewritten step over the whole rest of its trace, where it was taken."""
    return decision.rest_kl if decision.rewritten else None
