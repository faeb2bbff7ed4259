"""Why a candidate was turned down, and what is known of an accepted one beyond the window."""

from dataclasses import replace

import pytest

from tokensqueeze.config import KLBound, Reliable, RewriterSettings
from tokensqueeze.reporting.refinement import TurnedDown, kl_on_the_rest, turned_down
from tokensqueeze.schema import StepDecision

KEPT = StepDecision(0, "So 7 + 5 = 12.", "So 7 + 5 = 12.", 9, 9, 0.0, None, 3, 2)
REWRITTEN = replace(KEPT, kept_text="7 + 5 = 12.", kept_tokens=8, kl=0.001)


def tried(kl: float, reliability: float | None = None, *, tokens: int = 3, text: str = "12.") -> StepDecision:
    return replace(KEPT, rejected_text=text, rejected_tokens=tokens, rejected_kl=kl, rejected_reliability=reliability)


def test_what_has_no_reliability_was_over_the_bound_and_its_kl_is_the_least_it_can_be() -> None:
    found = turned_down(tried(0.0062), KLBound())
    assert found == TurnedDown("12.", 6, 0.0062, None, "over the KL bound")
    assert found is not None and not found.kl_is_known


@pytest.mark.parametrize(
    ("rewriter", "reliability", "reason"),
    [
        (Reliable(min_reliability=0.9), 0.62, "form not reliable enough"),
        (Reliable(min_reliability=0.6), 0.62, "form drawn too seldom"),
        (Reliable(min_reliability=0.62), 0.62, "form drawn too seldom"),
    ],
)
def test_what_was_within_the_bound_fell_short_of_the_reliability_or_of_the_draws(
    rewriter: RewriterSettings, reliability: float, reason: str
) -> None:
    found = turned_down(tried(0.001, reliability), rewriter)
    assert found is not None and found.reason == reason
    assert found.kl_is_known


def test_a_longer_candidate_saves_less_than_nothing() -> None:
    found = turned_down(tried(0.001, 0.5, tokens=12), Reliable())
    assert found is not None and found.saved_tokens == -3


def test_an_empty_candidate_is_one() -> None:
    found = turned_down(tried(0.3, text="", tokens=0), KLBound())
    assert found is not None and (found.text, found.saved_tokens) == ("", 9)


@pytest.mark.parametrize("missing", ["rejected_text", "rejected_tokens", "rejected_kl"])
def test_a_row_with_nulls_has_no_candidate_turned_down(missing: str) -> None:
    assert turned_down(KEPT, KLBound()) is None
    assert turned_down(replace(tried(0.0062), **{missing: None}), KLBound()) is None


def test_the_rest_is_known_of_rewritten_steps_that_were_read_to_its_end() -> None:
    assert kl_on_the_rest(REWRITTEN) is None
    assert kl_on_the_rest(replace(REWRITTEN, rest_kl=0.007, rest_passes=False)) == 0.007
    assert kl_on_the_rest(replace(REWRITTEN, rest_kl=0.0, rest_passes=True)) == 0.0
    assert kl_on_the_rest(replace(KEPT, rest_kl=0.007, rest_passes=False)) is None
