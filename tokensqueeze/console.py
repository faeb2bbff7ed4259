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
        details = f"loss {progress.loss:.4f}"
        if progress.dev_accuracy is not None:
            details += f"  dev accuracy {progress.dev_accuracy:.1%}"
        if progress.tokens_per_second:
            details += f"  {progress.tokens_per_second:,.0f} tokens/s"
        self._show(_TRAINING, progress.step, progress.steps, details)

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
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )

    def _show(self, stage: str, done: int, total: int, details: str) -> None:
        shown = self._shown[stage]
        if self._progress and shown.bar is not None:
            self._progress.update(shown.bar, completed=done, total=total, details=details)
            return
        if shown.first_shards is None:
            shown.first_shards = done
        now = time.monotonic()
        if now - shown.last_line < _LINE_SECONDS:
            return
        shown.last_line = now
        fresh = done - shown.first_shards
        left = f", {(now - shown.started) / fresh * (total - done):.0f} s left" if fresh else ""
        self.console.print(f"{shown.title}: {done}/{total}  {details}{left}", markup=False)

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


class _Details(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("details", "")))
