"""How large a rewriting's KL may be: ε, or ε scaled to how uncertain the model is where it is measured."""

from dataclasses import dataclass
from typing import Literal

from tokensqueeze.scoring.branches import ReadTrace
from tokensqueeze.traces.anatomy import Span

BoundScale = Literal["constant", "entropy"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Bound:
    """`kl_bound` ε is in nats where the scale is `constant` (per token or over the window, by `reduction`), and a share of the
    entropy of the original's predictions where it is `entropy`."""

    kl_bound: float
    reduction: Reduction = "mean"
    scale: BoundScale = "constant"

    def limit(self, trace: ReadTrace, span: Span, num_tokens: int) -> float:
        """Return the sum over the window, in nats, at which a candidate fails."""
        if self.scale == "entropy":
            assert trace.entropy_L is not None
            # The token before t_1 predicts t_1.
            return self.kl_bound * float(trace.entropy_L[span.end - 1 : span.end - 1 + num_tokens].sum())
        return self.kl_bound * (num_tokens if self.reduction == "mean" else 1)

    def reduced(self, kl_sum: float, num_tokens: int) -> float:
        """Return a window's KL as it is reported: nats per token, or nats."""
        return kl_sum / max(1, num_tokens) if self.reduction == "mean" else kl_sum
