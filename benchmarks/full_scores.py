"""Every candidate's KL to the end of its window, and what a rule makes of it under any bound: a sweep scores once.

The rules choose as they do in the pipeline: per-position KL is never negative, so what early rejection turns down is what
has a full KL at the limit or above.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from benchmarks.refinement_cases import Case
from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.rewriters.choice import Choice, Judged, answered
from tokensqueeze.rewriters.decide import rule_of
from tokensqueeze.schema import StepCandidates
from tokensqueeze.scoring.bounds import Bound, BoundScale
from tokensqueeze.scoring.window_kl import Window, WindowScorer
from tokensqueeze.traces.anatomy import Span


@dataclass(frozen=True)
class ScoredStep:
    case: Case
    step: StepCandidates
    num_tokens: int
    """T: tokens of its window."""
    kl: list[float]
    """Of each candidate, summed over the window, in nats."""
    own_kl: float
    """Of the step itself, read as a candidate: what is not zero is rounding."""
    limit_of_one: dict[BoundScale, float]
    """The sum at which a candidate fails where ε is 1; it is proportional to ε."""

    @property
    def num_step_tokens(self) -> int:
        return self.step.token_end - self.step.token_start

    def kl_per_token(self) -> list[float]:
        return [kl / max(1, self.num_tokens) for kl in self.kl]

    def passes(self, kl_bound: float, scale: BoundScale = "constant") -> list[bool]:
        """Return each candidate's verdict. Nothing follows the last token of a trace, so nothing is wrong with it there."""
        limit = kl_bound * self.limit_of_one[scale]
        return [not self.num_tokens or kl < limit for kl in self.kl]

    def choice(self, rewriter: KLBound | Reliable, kl_bound: float, scale: BoundScale = "constant") -> Choice:
        """Return what the rewriter's rule chooses. The paper's rule has a use for the draws of the reliable one: it passes
        over those that are not shorter than the step."""
        first_draws = [candidate.first_draw for candidate in self.step.candidates]
        judged = map(Judged, self.kl_per_token(), self.passes(kl_bound, scale))
        verdicts = dict(zip(first_draws, judged, strict=True))
        rule = rule_of(
            rewriter,
            step_text=self.step.step_text,
            step_token_ids=self.case.trace.token_ids[self.step.token_start : self.step.token_end],
            candidates=self.step.candidates,
        )
        return answered(rule, lambda candidate: verdicts[candidate.first_draw])


def score_in_full(scorer: WindowScorer, cases: Sequence[Case], window_tokens: int) -> list[ScoredStep]:
    """Return every step of every case; the cases must fit the model's context."""
    return [step for case in cases for step in _scored(scorer, case, window_tokens)]


def _scored(scorer: WindowScorer, case: Case, window_tokens: int) -> Iterator[ScoredStep]:
    offset = len(case.problem.prompt_token_ids)
    token_ids = [*case.problem.prompt_token_ids, *case.trace.token_ids]
    read = scorer.read_trace(token_ids, with_entropy=True)
    windows: list[list[Window]] = []
    for step in case.steps:
        span = Span(offset + step.token_start, offset + step.token_end)
        num_tokens = min(window_tokens, len(token_ids) - span.end)
        texts = [token_ids[span.start : span.end], *(candidate.token_ids for candidate in step.candidates)]
        windows.append([Window(read, span, text, num_tokens) for text in texts])
        for window in windows[-1]:
            scorer.add(window)
    while not all(window.finished for own in windows for window in own):
        scorer.advance()
    for step, (itself, *candidates) in zip(case.steps, windows, strict=True):
        scales: tuple[BoundScale, ...] = get_args(BoundScale)
        units: dict[BoundScale, float] = {}
        for scale in scales:
            units[scale] = Bound(1.0, scale=scale).limit(read, itself.span, itself.num_tokens)
        yield ScoredStep(case, step, itself.num_tokens, [window.kl for window in candidates], itself.kl, units)
