"""The rule of the rewriter that the settings name, for one step."""

from collections.abc import Sequence

from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.rewriters.choice import Rule
from tokensqueeze.rewriters.kl_bound import choose_within_bound
from tokensqueeze.rewriters.reliable import choose_reliable
from tokensqueeze.schema import Candidate


def rule_of(
    rewriter: KLBound | Reliable, *, step_text: str, step_token_ids: Sequence[int], candidates: Sequence[Candidate]
) -> Rule:
    match rewriter:
        case KLBound():
            return choose_within_bound(step_token_ids, candidates)
        case Reliable():
            return choose_reliable(
                step_text,
                step_token_ids,
                candidates,
                min_reliability=rewriter.min_reliability,
                min_form_draws=rewriter.min_form_draws,
                form=rewriter.form,
                max_edit_distance=rewriter.max_edit_distance,
            )
