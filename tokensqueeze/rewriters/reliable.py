"""Reliable rewriting: keep a short form only where the model takes it dependably (not in the paper).

A chosen trace is known to be right, so a lucky shortcut in it passes the KL bound, though the model would often get it
wrong. The draws say how often: a form's share of draws that pass is how dependable it is at this place.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tokensqueeze.rewriters.choice import Choice, Judged, Rejected, Rule, nearest_failing
from tokensqueeze.rewriters.forms import Form, forms_of
from tokensqueeze.schema import Candidate


def choose_reliable(
    step_text: str,
    step_token_ids: Sequence[int],
    candidates: Sequence[Candidate],
    *,
    min_reliability: float,
    min_form_draws: int,
    form: Form,
    max_edit_distance: float,
) -> Rule:
    """Choose the shortest passing text, the original and longer ones included, that is reliable enough.

    Reliability = (draws that pass + ½) / (draws + 1), over the draws of the text's form; the original counts as one draw
    with KL 0. A form with fewer than `min_form_draws` draws proves nothing about itself: its texts are judged by all draws
    of such forms that are no longer than they are, and stay unproven where these are too few as well. An unproven text
    never stands in for the original, which itself has the better of the two shares. If nothing proven reaches
    `min_reliability`, the most reliable of what is proven and of the original is kept. Ties: shorter, lower KL, earlier.
    """
    step_ids = list(step_token_ids)
    others = [candidate for candidate in candidates if candidate.token_ids != step_ids]
    own_draws = 1 + sum(candidate.draws for candidate in candidates if candidate.token_ids == step_ids)
    original = Candidate(step_text, step_ids, own_draws, first_draw=-1)
    judged = [Judged(0.0, passes=True), *((yield others) if others else [])]
    labels = forms_of([original, *others], form, max_edit_distance=max_edit_distance)
    texts = _with_evidence([original, *others], judged, labels, min_form_draws)

    eligible = [text for text in texts if text.passes and (text.proven or text.candidate is original)]
    reliable = [text for text in eligible if text.proven and text.reliability >= min_reliability]
    if reliable:
        kept = min(reliable, key=_Text.shortest_first)
    else:
        kept = min(eligible, key=lambda text: (-text.reliability, *text.shortest_first()))
    rejected = _nearest_unreliable(texts, kept, original)
    if rejected is None:
        failing = zip(others, judged[1:], strict=True)
        rejected = nearest_failing((c, one) for c, one in failing if len(c.token_ids) < len(step_ids))
    replacement = None if kept.candidate is original else kept.candidate
    return Choice(replacement, kept.kl, len(others), kept.reliability, rejected)


@dataclass(frozen=True)
class _Text:
    """A text that may be kept, and what the draws say of it."""

    candidate: Candidate
    kl: float
    passes: bool
    reliability: float
    proven: bool

    def shortest_first(self) -> tuple[int, float, int]:
        return len(self.candidate.token_ids), self.kl, self.candidate.first_draw


def _with_evidence(
    candidates: Sequence[Candidate], judged: Sequence[Judged], labels: Sequence[int], min_form_draws: int
) -> list[_Text]:
    """Weigh the original, which comes first, and the others."""
    original = candidates[0]
    draws, passing = Counter[int](), Counter[int]()
    for candidate, one, label in zip(candidates, judged, labels, strict=True):
        draws[label] += candidate.draws
        passing[label] += candidate.draws * one.passes
    pool = [
        (len(candidate.token_ids), candidate.draws, one.passes)
        for candidate, one, label in zip(candidates, judged, labels, strict=True)
        if draws[label] < min_form_draws
    ]

    def text(candidate: Candidate, one: Judged, label: int) -> _Text:
        share = _smoothed(passing[label], draws[label])
        if draws[label] >= min_form_draws:
            return _Text(candidate, one.kl, one.passes, share, proven=True)
        no_longer = [(count, passes) for length, count, passes in pool if length <= len(candidate.token_ids)]
        seen = sum(count for count, _ in no_longer)
        pooled = _smoothed(sum(count for count, passes in no_longer if passes), seen)
        if candidate is original and pooled < share:
            return _Text(candidate, one.kl, one.passes, share, proven=False)
        return _Text(candidate, one.kl, one.passes, pooled, proven=seen >= min_form_draws)

    return [text(*entry) for entry in zip(candidates, judged, labels, strict=True)]


def _smoothed(passing: int, draws: int) -> float:
    return (passing + 0.5) / (draws + 1)


def _nearest_unreliable(texts: Sequence[_Text], kept: _Text, original: Candidate) -> Rejected | None:
    """Return the shortest passing text that only its reliability kept from being chosen."""
    turned_down = [
        text
        for text in texts
        if text.passes and text.candidate is not original and text.shortest_first() < kept.shortest_first()
    ]
    if not turned_down:
        return None
    nearest = min(turned_down, key=_Text.shortest_first)
    return Rejected(nearest.candidate, nearest.kl, nearest.reliability)
