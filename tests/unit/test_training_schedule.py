"""The learning rate, at steps where it can be said by hand."""

import math

import pytest

from tokensqueeze.training.schedule import learning_rate_at


def test_rises_by_equal_parts_and_reaches_the_peak_at_the_end_of_the_warm_up() -> None:
    rates = [_rate(step, warmup_ratio=0.3, schedule="constant") for step in range(1, 11)]
    assert rates == pytest.approx([2, 4, 6, *[6] * 7])


def test_warm_up_of_part_of_a_step_takes_a_step() -> None:
    # 3 % of 10 steps: one step, at the peak.
    assert _rate(1, warmup_ratio=0.03, schedule="linear") == 6
    assert _rate(2, warmup_ratio=0.03, schedule="linear") == 6


def test_linear_falls_to_0_one_step_behind_the_last() -> None:
    rates = [_rate(step, warmup_ratio=0, schedule="linear") for step in range(1, 11)]
    assert rates == pytest.approx([6, 5.4, 4.8, 4.2, 3.6, 3, 2.4, 1.8, 1.2, 0.6])


def test_cosine_is_at_half_of_the_peak_half_way() -> None:
    assert _rate(1, warmup_ratio=0, schedule="cosine") == 6
    assert _rate(6, warmup_ratio=0, schedule="cosine") == pytest.approx(3)
    assert _rate(10, warmup_ratio=0, schedule="cosine") == pytest.approx(3 * (1 + math.cos(0.9 * math.pi)))


def _rate(step: int, *, warmup_ratio: float, schedule: str) -> float:
    return learning_rate_at(step, steps=10, peak=6, warmup_ratio=warmup_ratio, schedule=schedule)  # type: ignore[arg-type]
