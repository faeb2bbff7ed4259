"""A rule as a dialogue: it asks for verdicts on candidates as it needs them, and ends with its choice.

So the rules of many steps can run side by side, and what they ask for is scored together (`rewriters.judge_steps`).
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

from tokensqueeze.schema import Candidate


@dataclass(frozen=True)
class Judged:
    """What the KL bound says of one candidate."""

    kl: float
    """In nats, reduced as the settings say; of a candidate that fails, what was known when it did: no more than its KL."""
    passes: bool


@dataclass(frozen=True)
class Rejected:
    """The candidate that came nearest among those turned down."""

    candidate: Candidate
    kl: float
    reliability: float | None = None
    """Where the KL bound let it pass: how reliable its form is, which was not enough."""


@dataclass(frozen=True)
class Choice:
    """`candidate` is None where the original step stays."""

    candidate: Candidate | None
    kl: float
    num_scored: int
    reliability: float | None = None
    rejected: Rejected | None = None


Rule = Generator[Sequence[Candidate], list[Judged], Choice]
"""Yields candidates to be judged, is sent one verdict each, returns its choice."""


def nearest_failing(judged: Iterable[tuple[Candidate, Judged]]) -> Rejected | None:
    """Return the candidate outside the bound with the lowest known KL; ties go to the earlier draw."""
    # One that is too long for the context fails unread: nothing is known of its KL.
    failing = [(one.kl, c.first_draw, c) for c, one in judged if not one.passes and one.kl > 0]
    if not failing:
        return None
    kl, _, candidate = min(failing, key=lambda entry: entry[:2])
    return Rejected(candidate, kl)


def answered(rule: Rule, judge: Callable[[Candidate], Judged]) -> Choice:
    """Return what a rule chooses when each candidate's verdict is at hand."""
    try:
        wanted = next(rule)
        while True:
            wanted = rule.send([judge(candidate) for candidate in wanted])
    except StopIteration as end:
        return end.value
