"""What a run shows: on a terminal, and as plain lines in a log, where the clock is ours."""

import io
import re

import pytest
from rich.console import Console

from tokensqueeze import console as console_module
from tokensqueeze.console import RunConsole
from tokensqueeze.stages.run_stage import StageProgress, StageRecord
from tokensqueeze.training.launch import TrainingProgress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console_module, "time", clock)
    return clock


def console_on(*, terminal: bool) -> tuple[RunConsole, io.StringIO]:
    written = io.StringIO()
    return RunConsole(Console(file=written, force_terminal=terminal, width=120, highlight=False)), written


def plain_text(written: io.StringIO) -> str:
    """What was written, without the terminal's control codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())


def record(**values: object) -> StageRecord:
    whole = {
        "stage": "traces",
        "rows": 2048,
        "tokens": 123456,
        "seconds": 61.26,
        "busy_seconds": 120.0,
        "workers": 2,
        "counts": {},
        "reused": False,
        "resumed_shards": 0,
    }
    return StageRecord(**(whole | values))  # type: ignore[arg-type]


def test_a_log_gets_a_line_at_the_start_and_one_at_the_end() -> None:
    console, written = console_on(terminal=False)
    console.stage_started("traces", 1, 10)
    console.stage_progress(StageProgress("traces", 0, 8, 0, 0))
    console.stage_done(record())
    console.close()
    assert written.getvalue() == "[1/10] traces: starting\n[1/10] traces: 2,048 rows, 123,456 tokens, 61.3 s\n"


def test_a_log_gets_a_progress_line_at_most_every_ten_seconds_with_rate_and_time_left(clock: Clock) -> None:
    console, written = console_on(terminal=False)
    console.stage_started("traces", 1, 10)
    # Two shards were there already: they are in the rows, and say nothing about how fast this run is.
    for seconds, shards in ((0, 2), (4, 3), (12, 4), (15, 5), (21, 5), (24, 6)):
        clock.now = 1000.0 + seconds
        console.stage_progress(StageProgress("traces", shards, 10, shards * 100, (shards - 2) * 1200))
    # At 12 s: 2 fresh shards, so 6 s each, and 6 to go. 2,400 tokens in 12 s. At 24 s: 4 fresh, 4 to go.
    assert written.getvalue().splitlines()[1:] == [
        "[1/10] traces: 4/10  400 rows  2,400 tokens  200/s, 36 s left",
        "[1/10] traces: 6/10  600 rows  4,800 tokens  200/s, 24 s left",
    ]


def test_a_log_says_nothing_of_the_time_left_before_anything_is_done(clock: Clock) -> None:
    console, written = console_on(terminal=False)
    console.stage_started("traces", 1, 10)
    for seconds in (0, 30):
        clock.now = 1000.0 + seconds
        console.stage_progress(StageProgress("traces", 2, 10, 200, 0))
    assert written.getvalue().splitlines()[1:] == ["[1/10] traces: 2/10  200 rows"]


def test_training_shows_loss_accuracy_and_speed_where_they_are_known(clock: Clock) -> None:
    console, written = console_on(terminal=False)
    console.stage_started("model", 8, 10)
    console.training_progress(TrainingProgress(1, 40, 0.7, None, 0.0))
    clock.now += 20
    console.training_progress(TrainingProgress(11, 40, 0.693147, None, 1500.4))
    clock.now += 20
    console.training_progress(TrainingProgress(21, 40, 0.5, 0.8125, 1500.4))
    assert written.getvalue().splitlines()[1:] == [
        # 10 fresh steps in 20 s, 29 to go; then 20 in 40 s, 19 to go.
        "[8/10] model: 11/40  loss 0.6931  1,500 tokens/s, 58 s left",
        "[8/10] model: 21/40  loss 0.5000  dev accuracy 81.2%  1,500 tokens/s, 38 s left",
    ]


def test_training_shows_margin_rewards_preference_and_memory_and_its_own_time_left(clock: Clock) -> None:
    console, written = console_on(terminal=False)
    console.stage_started("model", 8, 10)
    clock.now += 20
    progress = TrainingProgress(
        step=11,
        steps=40,
        loss=0.5,
        dev_accuracy=0.8125,
        tokens_per_second=1500.4,
        margin=0.523,
        chosen_reward=0.312,
        rejected_reward=-0.211,
        preference_accuracy=0.875,
        max_memory_bytes=5 * 2**29,
        seconds_left=5400.0,
    )
    console.training_progress(progress)
    assert written.getvalue().splitlines()[1:] == [
        "[8/10] model: 11/40  loss 0.5000  margin 0.52  rewards +0.31 -0.21  preferred 88%  dev accuracy 81.2%  "
        "1,500 tokens/s  2.5 GiB, 90 min left"
    ]


def test_terminal_shows_the_time_left_that_training_tells() -> None:
    console, written = console_on(terminal=True)
    console.stage_started("model", 8, 10)
    console.training_progress(TrainingProgress(11, 40, 0.5, None, 0.0, seconds_left=36000.0))
    console.close()
    assert "10.0 h" in plain_text(written)


def test_what_was_done_before_and_what_was_kept_is_told() -> None:
    console, written = console_on(terminal=False)
    console.stage_started("selected_traces", 3, 10)
    console.stage_done(record(stage="selected_traces", rows=12, tokens=0, reused=True, resumed_shards=4))
    console.stage_started("step_candidates", 4, 10)
    console.stage_done(record(stage="step_candidates", rows=7, tokens=9, seconds=0.04, resumed_shards=4))
    console.stage_started("model", 8, 10)
    console.stage_done(record(stage="model", rows=36, tokens=5000, seconds=2.0))
    assert written.getvalue().splitlines()[1::2] == [
        "[3/10] selected_traces: 12 rows, done before",
        "[4/10] step_candidates: 7 rows, 9 tokens, 4 shards of an earlier run kept, 0.0 s",
        "[8/10] model: 36 steps, 5,000 tokens, 2.0 s",
    ]


def test_square_brackets_in_a_note_are_text() -> None:
    console, written = console_on(terminal=False)
    console.note("problems.train: [bold]2[/bold] dropped [x]")
    assert written.getvalue() == "problems.train: [bold]2[/bold] dropped [x]\n"


def test_a_terminal_gets_a_bar_that_goes_away_and_leaves_one_line_a_stage() -> None:
    console, written = console_on(terminal=True)
    for number, name in enumerate(("traces", "verified_traces"), start=1):
        console.stage_started(name, number, 2)
        console.stage_progress(StageProgress(name, 1, 4, 100, 0))
        console.stage_progress(StageProgress(name, 4, 4, 400, 0))
        console.stage_done(record(stage=name, rows=400, tokens=0, seconds=1.0))
    console.close()
    plain = plain_text(written)
    assert "starting" not in plain.splitlines()[-1]
    assert "400 rows" in plain
    assert plain.count("[1/2] traces: 400 rows, 1.0 s") == plain.count("[2/2] verified_traces: 400 rows, 1.0 s") == 1
    # The cursor is given back.
    assert written.getvalue().rindex("\x1b[?25h") > written.getvalue().rindex("\x1b[?25l")


def test_a_log_tells_of_each_of_two_stages_that_overlap_with_its_own_clock(clock: Clock) -> None:
    console, written = console_on(terminal=False)
    console.stage_started("step_candidates", 4, 10)
    console.stage_started("refined_traces", 5, 10)
    for seconds, proposed, accepted in ((0, 0, 0), (12, 3, 1), (15, 4, 2), (24, 4, 3)):
        clock.now = 1000.0 + seconds
        console.stage_progress(StageProgress("step_candidates", proposed, 4, proposed * 10, proposed * 600))
        console.stage_progress(StageProgress("refined_traces", accepted, 4, accepted, accepted * 60))
        if seconds == 15:
            console.stage_done(record(stage="step_candidates", rows=40, tokens=2400, seconds=15.0))
            break
    clock.now = 1024.0
    console.stage_progress(StageProgress("refined_traces", 3, 4, 3, 180))
    console.stage_done(record(stage="refined_traces", rows=4, tokens=240, seconds=20.0))
    assert written.getvalue().splitlines() == [
        "[4/10] step_candidates: starting",
        "[5/10] refined_traces: starting",
        # 3 of 4 in 12 s, and 1 of 4 in 12 s; then 3 of 4 in 24 s.
        "[4/10] step_candidates: 3/4  30 rows  1,800 tokens  150/s, 4 s left",
        "[5/10] refined_traces: 1/4  1 rows  60 tokens  5/s, 36 s left",
        "[4/10] step_candidates: 40 rows, 2,400 tokens, 15.0 s",
        "[5/10] refined_traces: 3/4  3 rows  180 tokens  8/s, 8 s left",
        "[5/10] refined_traces: 4 rows, 240 tokens, 20.0 s",
    ]


def test_a_terminal_shows_a_bar_for_each_of_two_stages_that_overlap() -> None:
    console, written = console_on(terminal=True)
    console.stage_started("step_candidates", 4, 10)
    console.stage_started("refined_traces", 5, 10)
    console.stage_progress(StageProgress("step_candidates", 3, 4, 30, 0))
    console.stage_progress(StageProgress("refined_traces", 1, 4, 11, 0))
    assert console._progress is not None
    console._progress.refresh()
    both = plain_text(written)
    assert "[4/10] step_candidates" in both and "30 rows" in both
    assert "[5/10] refined_traces" in both and "11 rows" in both

    console.stage_done(record(stage="step_candidates", rows=40, tokens=0, seconds=15.0))
    written.truncate(0)
    console._progress.refresh()
    # The bar of the one that is done is gone, the other's stays.
    assert "step_candidates" not in plain_text(written)
    assert "[5/10] refined_traces" in plain_text(written)
    console.stage_done(record(stage="refined_traces", rows=4, tokens=0, seconds=20.0))
    assert plain_text(written).splitlines()[-1] == "[5/10] refined_traces: 4 rows, 20.0 s"
    assert written.getvalue().rindex("\x1b[?25h") > 0


def test_a_stage_that_fails_gives_the_terminal_back() -> None:
    console, written = console_on(terminal=True)
    console.stage_started("traces", 1, 10)
    console.close()
    console.close()
    assert written.getvalue().rindex("\x1b[?25h") > written.getvalue().rindex("\x1b[?25l")
