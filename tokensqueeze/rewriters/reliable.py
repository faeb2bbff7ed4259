"""Reliable rewriting: keep a short form only where the model takes it dependably (not in the paper).

A chosen trace is known to be right, so a lucky shortcut in it passes the KL bound, though the model would often get it
wrong. The draws say how often: a form's share of draws that pass is how dependable it is at this place.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from tokensqueeze.rewriters.choice import Choice, Score, keep_original
from tokensqueeze.schema import Candidate

Form = Literal["masked_numbers", "length_class"]
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LENGTH_CLASS_RATIO = 1.25


def choose_reliable(
    step_text: str,
    step_token_ids: Sequence[int],
    candidates: Sequence[Candidate],
    score: Score,
    *,
    kl_bound: float,
    min_reliability: float,
    form: Form,
) -> Choice:
    """Return the shortest passing text, the original and longer ones included, whose form is reliable enough.

    Reliability of a form = (its draws that pass + ½) / (its draws + 1); the original counts as one draw with KL 0. If no
    form reaches `min_reliability`, the most reliable form's shortest passing text is kept. Ties: shorter, lower KL, earlier.
    """
    others = [candidate for candidate in candidates if candidate.token_ids != list(step_token_ids)]
    original_draws = 1 + sum(c.draws for c in candidates if c.token_ids == list(step_token_ids))
    original = Candidate(step_text, list(step_token_ids), original_draws, first_draw=-1)
    kls = {-1: 0.0} | {c.first_draw: kl for c, kl in zip(others, score(others), strict=True)}
    forms: dict[str | int, list[Candidate]] = defaultdict(list)
    for candidate in (original, *others):
        forms[form_of(candidate, form)].append(candidate)
    ranked = []
    for members in forms.values():
        passing = [candidate for candidate in members if kls[candidate.first_draw] < kl_bound]
        reliability = (sum(c.draws for c in passing) + 0.5) / (sum(c.draws for c in members) + 1)
        if passing:
            best = min(passing, key=lambda c: (len(c.token_ids), kls[c.first_draw], c.first_draw))
            ranked.append((reliability, best))
    reliable = [entry for entry in ranked if entry[0] >= min_reliability]
    if reliable:
        reliability, kept = min(
            reliable, key=lambda entry: (len(entry[1].token_ids), kls[entry[1].first_draw], entry[1].first_draw)
        )
    else:
        reliability, kept = min(ranked, key=lambda entry: (-entry[0], len(entry[1].token_ids), entry[1].first_draw))
    if kept is original:
        return keep_original(len(others), reliability)
    return Choice(kept, kls[kept.first_draw], len(others), reliability)


def form_of(candidate: Candidate, form: Form) -> str | int:
    """Return what a candidate shares with others of its form: its text with numbers masked, or its class of length."""
    if form == "masked_numbers":
        return _NUMBER.sub("#", candidate.text)
    return math.floor(math.log(len(candidate.token_ids), _LENGTH_CLASS_RATIO))
