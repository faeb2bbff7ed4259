"""A run's progress on a terminal, or as plain lines in a log."""

import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from tokensqueeze.stages.run_stage import StageProgress, StageRecord
from tokensqueeze.training.launch import TrainingProgress

_LINE_SECONDS = 10
"""A log gets at most one progress line of a stage in this many seconds."""

_TRAINING = "model"
"""The stage that training progress is of."""


@dataclass
class _Shown:
    """A stage that is under way."""

    title: str
    started: float
    last_line: float
    first_shards: int | None = None
    bar: TaskID | None = None


class RunConsole:
    """Shows rows, tokens, rate and time left of every stage that is under way."""

    def __init__(self, console: Console | None = None):
        # A log has no width; tables in it should not be cut to a terminal's.
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self._progress: Progress | None = None
        self._shown: dict[str, _Shown] = {}

    def stage_started(self, name: str, number: int, of: int) -> None:
        now = time.monotonic()
        shown = self._shown[name] = _Shown(f"[{number}/{of}] {name}", now, now)
        if self.console.is_terminal:
            if self._progress is None:
                self._progress = self._bars()
                self._progress.start()
            shown.bar = self._progress.add_task(shown.title, total=None, details="starting")
        else:
            self.console.print(f"{shown.title}: starting", markup=False)

    def stage_progress(self, progress: StageProgress) -> None:
        details = f"{progress.rows:,} rows"
        if progress.tokens:
            seconds = time.monotonic() - self._shown[progress.stage].started
            details += f"  {progress.tokens:,} tokens  {progress.tokens / seconds:,.0f}/s"
        self._show(progress.stage, progress.shards_done, progress.num_shards, details)

    def training_progress(self, progress: TrainingProgress) -> None:
        self._show(_TRAINING, progress.step, progress.steps, training_details(progress), progress.seconds_left)

    def stage_done(self, record: StageRecord) -> None:
        shown = self._shown.pop(record.stage)
        if self._progress and shown.bar is not None:
            self._progress.remove_task(shown.bar)
        if not self._shown:
            self._stop()
        took = "done before" if record.reused else f"{record.seconds:.1f} s"
        parts = [f"{record.rows:,} {'steps' if record.stage == _TRAINING else 'rows'}"]
        if record.tokens:
            parts.append(f"{record.tokens:,} tokens")
        if record.resumed_shards and not record.reused:
            parts.append(f"{record.resumed_shards} shards of an earlier run kept")
        self.console.print(f"{shown.title}: {', '.join(parts)}, {took}", markup=False)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def close(self) -> None:
        self._stop()

    def _bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Details(),
            TimeElapsedColumn(),
            TextColumn("left"),
            _TimeLeft(),
            console=self.console,
            transient=True,
        )

    def _show(self, stage: str, done: int, total: int, details: str, seconds_left: float | None = None) -> None:
        shown = self._shown[stage]
        if self._progress and shown.bar is not None:
            self._progress.update(shown.bar, completed=done, total=total, details=details, seconds_left=seconds_left)
            return
        if shown.first_shards is None:
            shown.first_shards = done
        now = time.monotonic()
        if now - shown.last_line < _LINE_SECONDS:
            return
        shown.last_line = now
        fresh = done - shown.first_shards
        if seconds_left is None and fresh:
            seconds_left = (now - shown.started) / fresh * (total - done)
        left = f", {_time(seconds_left)} left" if seconds_left is not None else ""
        self.console.print(f"{shown.title}: {done}/{total}  {details}{left}", markup=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


class _Details(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("details", "")))


class _TimeLeft(TimeRemainingColumn):
    """The time left that a stage tells itself, else the bar's own estimate."""

    def render(self, task: Task) -> Text:
        seconds = task.fields.get("seconds_left")
        return super().render(task) if seconds is None else Text(_time(seconds), style="progress.remaining")


def training_details(progress: TrainingProgress) -> str:
    """Return what there is to know after a step; rewards are those of the chosen and of the rejected side."""
    parts = [f"loss {progress.loss:.4f}"]
    if progress.margin is not None:
        parts.append(f"margin {progress.margin:.2f}")
    if progress.chosen_reward is not None and progress.rejected_reward is not None:
        parts.append(f"rewards {progress.chosen_reward:+.2f} {progress.rejected_reward:+.2f}")
    if progress.preference_accuracy is not None:
        parts.append(f"preferred {progress.preference_accuracy:.0%}")
    if progress.dev_accuracy is not None:
        parts.append(f"dev accuracy {progress.dev_accuracy:.1%}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.max_memory_bytes:
        parts.append(f"{progress.max_memory_bytes / 2**30:.1f} GiB")
    return "  ".join(parts)


def _time(seconds: float) -> str:
    """8.2 → `8 s`; 95 → `95 s`; 5400 → `90 min`; 90000 → `25.0 h`."""
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"
