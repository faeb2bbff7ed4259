"""Apply the rewriter that the settings name to one step."""

from collections.abc import Sequence
from typing import assert_never

from tokensqueeze.config import KLBound, NoRewrite, Reliable, RewriterSettings
from tokensqueeze.rewriters.choice import Choice, Score, keep_original
from tokensqueeze.rewriters.kl_bound import choose_within_bound
from tokensqueeze.rewriters.reliable import choose_reliable
from tokensqueeze.schema import Candidate


def decide(
    rewriter: RewriterSettings,
    *,
    step_text: str,
    step_token_ids: Sequence[int],
    candidates: Sequence[Candidate],
    score: Score,
) -> Choice:
    match rewriter:
        case NoRewrite():
            return keep_original(0)
        case KLBound():
            return choose_within_bound(step_token_ids, candidates, score, kl_bound=rewriter.kl_bound)
        case Reliable():
            return choose_reliable(
                step_text,
                step_token_ids,
                candidates,
                score,
                kl_bound=rewriter.kl_bound,
                min_reliability=rewriter.min_reliability,
                form=rewriter.form,
            )
        case _:
            assert_never(rewriter)
