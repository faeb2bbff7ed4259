"""A run's progress on a terminal, or as plain lines in a log."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from tokensqueeze.stages.run_stage import StageProgress, StageRecord
from tokensqueeze.training.launch import TrainingProgress

_LINE_SECONDS = 10
"""A log gets at most one progress line in this many seconds."""


class RunConsole:
    """Shows stages, rows, tokens, rate and time left."""

    def __init__(self, console: Console | None = None):
        # A log has no width; tables in it should not be cut to a terminal's.
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self._progress: Progress | None = None
        self._title = ""
        self._started = self._last_line = time.monotonic()
        self._first_shards: int | None = None

    def stage_started(self, name: str, number: int, of: int) -> None:
        self._title = f"[{number}/{of}] {name}"
        self._started = self._last_line = time.monotonic()
        self._first_shards = None
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                _Details(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._progress.start()
            self._progress.add_task(self._title, total=None, details="starting")
        else:
            self.console.print(f"{self._title}: starting", markup=False)

    def stage_progress(self, progress: StageProgress) -> None:
        details = f"{progress.rows:,} rows"
        if progress.tokens:
            details += f"  {progress.tokens:,} tokens  {progress.tokens / (time.monotonic() - self._started):,.0f}/s"
        self._show(progress.shards_done, progress.num_shards, details)

    def training_progress(self, progress: TrainingProgress) -> None:
        details = f"loss {progress.loss:.4f}"
        if progress.dev_accuracy is not None:
            details += f"  dev accuracy {progress.dev_accuracy:.1%}"
        if progress.tokens_per_second:
            details += f"  {progress.tokens_per_second:,.0f} tokens/s"
        self._show(progress.step, progress.steps, details)

    def stage_done(self, record: StageRecord) -> None:
        self._stop()
        took = "done before" if record.reused else f"{record.seconds:.1f} s"
        parts = [f"{record.rows:,} {'steps' if record.stage == 'model' else 'rows'}"]
        if record.tokens:
            parts.append(f"{record.tokens:,} tokens")
        if record.resumed_shards and not record.reused:
            parts.append(f"{record.resumed_shards} shards of an earlier run kept")
        self.console.print(f"{self._title}: {', '.join(parts)}, {took}", markup=False)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def close(self) -> None:
        self._stop()

    def _show(self, done: int, total: int, details: str) -> None:
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=done, total=total, details=details)
            return
        if self._first_shards is None:
            self._first_shards = done
        now = time.monotonic()
        if now - self._last_line < _LINE_SECONDS:
            return
        self._last_line = now
        fresh = done - self._first_shards
        left = f", {(now - self._started) / fresh * (total - done):.0f} s left" if fresh else ""
        self.console.print(f"{self._title}: {done}/{total}  {details}{left}", markup=False)

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


class _Details(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("details", "")))
