"""The learning rate as a function of the step alone, so that a resumed training has nothing to restore."""

import math
from typing import Literal


def learning_rate_at(
    step: int, *, steps: int, peak: float, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Return the learning rate of step 1, …, `steps`: a linear rise to `peak`, then the schedule's fall.

    The fall would reach 0 one step after the last, so that every step counts.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step <= warmup:
        return peak * step / warmup
    done = (step - 1 - warmup) / (steps - warmup)
    match schedule:
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return peak * (1 - done)
        case "constant":
            return peak
