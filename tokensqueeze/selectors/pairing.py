"""Pair what was chosen with the longer, wrong traces of the same problem (paper section 3.1)."""

import random
from collections.abc import Sequence

from tokensqueeze.config import PairingSettings
from tokensqueeze.fingerprint import seed_of
from tokensqueeze.schema import PreferencePair, Problem, RefinedTrace, VerifiedTrace


def preference_pairs(
    problem: Problem, chosen: Sequence[RefinedTrace], traces: Sequence[VerifiedTrace], settings: PairingSettings
) -> list[PreferencePair]:
    """Return (chosen, rejected) pairs of one problem: each chosen trace against every wrong one that is longer.

    Longer means: than the trace as it was chosen and as it was refined. An unverifiable trace is on neither side. Of more
    than `max_pairs_per_problem`, that many are drawn with a seed from the problem's id.
    """
    pairs = [
        _pair(problem, refined, rejected)
        for refined in chosen
        for rejected in traces
        if _is_rejected(rejected, refined, settings)
    ]
    if len(pairs) > settings.max_pairs_per_problem:
        rng = random.Random(seed_of("pairs", problem.problem_id))
        kept = sorted(rng.sample(range(len(pairs)), settings.max_pairs_per_problem))
        pairs = [pairs[index] for index in kept]
    return pairs


def chosen_alone(problem: Problem, chosen: Sequence[RefinedTrace]) -> list[PreferencePair]:
    """Return one row per chosen trace, with nothing rejected, for objectives that only imitate."""
    return [_pair(problem, refined, None) for refined in chosen]


def _is_rejected(trace: VerifiedTrace, refined: RefinedTrace, settings: PairingSettings) -> bool:
    length = max(refined.num_tokens, refined.original_num_tokens)
    if trace.verdict in ("incorrect", "no_answer"):
        return trace.num_tokens > length
    ratio = settings.longer_correct_ratio
    return trace.verdict == "correct" and ratio is not None and trace.num_tokens > ratio * length


def _pair(problem: Problem, chosen: RefinedTrace, rejected: VerifiedTrace | None) -> PreferencePair:
    return PreferencePair(
        pair_id=f"{chosen.trace_id}>{rejected.trace_id if rejected else ''}",
        problem_id=problem.problem_id,
        prompt=problem.prompt,
        chosen=chosen.text,
        rejected=rejected.text if rejected else None,
        prompt_token_ids=problem.prompt_token_ids,
        chosen_token_ids=chosen.token_ids,
        rejected_token_ids=rejected.token_ids if rejected else None,
        chosen_num_tokens=chosen.num_tokens,
        rejected_num_tokens=rejected.num_tokens if rejected else None,
        chosen_trace_id=chosen.trace_id,
        rejected_trace_id=rejected.trace_id if rejected else None,
    )
