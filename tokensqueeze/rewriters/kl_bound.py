"""The paper's rule: the shortest candidate whose KL stays within the bound (paper section 3.2, appendix B)."""

from collections.abc import Sequence
from itertools import groupby

from tokensqueeze.rewriters.choice import Choice, Score, keep_original
from tokensqueeze.schema import Candidate


def choose_within_bound(
    step_token_ids: Sequence[int], candidates: Sequence[Candidate], score: Score, *, kl_bound: float
) -> Choice:
    """Return the shortest candidate with KL below the bound; ties go to the lower KL, then to the earlier draw.

    Only candidates strictly shorter than the step count. Shortest first: the first length with one inside the bound holds
    the answer, and nothing longer is scored.
    """
    shorter = sorted((c for c in candidates if len(c.token_ids) < len(step_token_ids)), key=_length)
    num_scored = 0
    for _, same_length in groupby(shorter, key=_length):
        tried = list(same_length)
        num_scored += len(tried)
        passing = [(kl, c.first_draw, c) for kl, c in zip(score(tried), tried, strict=True) if kl < kl_bound]
        if passing:
            kl, _, winner = min(passing, key=lambda entry: entry[:2])
            return Choice(winner, kl, num_scored)
    return keep_original(num_scored)


def _length(candidate: Candidate) -> int:
    return len(candidate.token_ids)
