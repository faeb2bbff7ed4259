"""The paper's rule: the shortest candidate whose KL stays within the bound (paper section 3.2, appendix B)."""

from collections.abc import Sequence
from itertools import groupby

from tokensqueeze.rewriters.choice import Choice, Judged, Rule, nearest_failing
from tokensqueeze.schema import Candidate


def choose_within_bound(step_token_ids: Sequence[int], candidates: Sequence[Candidate]) -> Rule:
    """Choose the shortest candidate with KL below the bound; ties go to the lower KL, then to the earlier draw.

    Only candidates strictly shorter than the step count. Shortest first: the first length with one inside the bound holds
    the answer, and nothing longer is scored.
    """
    shorter = sorted((c for c in candidates if len(c.token_ids) < len(step_token_ids)), key=_length)
    known: list[tuple[Candidate, Judged]] = []
    for _, same_length in groupby(shorter, key=_length):
        tried = list(same_length)
        judged = yield tried
        known += zip(tried, judged, strict=True)
        passing = [(one.kl, c.first_draw, c) for c, one in known if one.passes]
        if passing:
            kl, _, winner = min(passing, key=lambda entry: entry[:2])
            return Choice(winner, kl, len(known), rejected=nearest_failing(known))
    return Choice(None, 0.0, len(known), rejected=nearest_failing(known))


def _length(candidate: Candidate) -> int:
    return len(candidate.token_ids)
