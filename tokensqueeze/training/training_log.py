"""The training log: one JSON object per optimiser step, look at the dev accuracy or warning; each once, none missing."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tokensqueeze.errors import TableError
from tokensqueeze.tables import write_text


@dataclass(frozen=True)
class PairsRow:
    """What the training starts from; `left_out` counts pairs by the reason."""

    step: int
    pairs: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class StepRow:
    """One optimiser step. Log-probabilities are means over the batch's pairs of sums over a completion, in nats.

    What follows from settings and data is the same in a resumed training; `seconds` and `max_memory_bytes` are not.
    """

    step: int
    epoch: int
    loss: float
    dpo_loss: float | None
    """The preference part: DPO's, DPO-L's or SimPO's."""
    sft_loss: float
    chosen_logps: float
    rejected_logps: float | None
    ref_chosen_logps: float | None
    """None where the reference was not asked for every pair, as an objective without one allows."""
    ref_rejected_logps: float | None
    chosen_reward: float | None
    """β·log ratio of policy and reference; under SimPO β times the mean log-probability per token."""
    rejected_reward: float | None
    margin: float | None
    """Reward of the chosen side − that of the rejected one."""
    preference_accuracy: float | None
    """Share of pairs whose margin is above 0."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Read in this step: both sides, and their prompt once."""
    seconds: float
    max_memory_bytes: int
    """Most that any worker has held so far: on its GPU, or else in main memory."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def chosen_log_ratio(self) -> float | None:
        """log π/π_ref of a chosen completion, in nats."""
        return None if self.ref_chosen_logps is None else self.chosen_logps - self.ref_chosen_logps

    @property
    def rejected_log_ratio(self) -> float | None:
        """log π/π_ref of a rejected completion, in nats."""
        if self.rejected_logps is None or self.ref_rejected_logps is None:
            return None
        return self.rejected_logps - self.ref_rejected_logps


@dataclass(frozen=True)
class DevRow:
    """Greedy decoding of the dev problems after `step` steps; `dev_length` is the mean completion's, in tokens."""

    step: int
    dev_accuracy: float
    dev_length: float


Alarm = Literal["chosen", "rejected", "dev_accuracy"]


@dataclass(frozen=True)
class WarningRow:
    """A training that is on its way to being stopped; each alarm is raised once."""

    step: int
    alarm: Alarm
    warning: str


Row = PairsRow | StepRow | DevRow | WarningRow


def append(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(asdict(row), allow_nan=False) + "\n")


def flush_to_disk(path: Path) -> None:
    """A checkpoint is only worth something with the log up to it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """Return the rows of a log; of a log that is not there, none. Raises `TableError` for a line that is no row."""
    return [row for row, _ in _rows(path)]


def keep_until(path: Path, step: int) -> None:
    """Drop what was logged after a step, a half-written last line included."""
    kept = "".join(line for row, line in _rows(path) if row.step <= step)
    write_text(path, kept)


def parse(line: str) -> Row:
    values: dict[str, Any] = json.loads(line)
    for told_by, kind in (("dev_accuracy", DevRow), ("warning", WarningRow), ("left_out", PairsRow)):
        if told_by in values:
            return kind(**values)
    return StepRow(**values)


def step_rows(path: Path) -> list[StepRow]:
    return [row for row in read(path) if isinstance(row, StepRow)]


def dev_rows(path: Path) -> list[DevRow]:
    return [row for row in read(path) if isinstance(row, DevRow)]


class LogTail:
    """Follows a log while workers write it, and cut it back where they start again from a checkpoint.

    A row's number is what it is known by: after a cut the same rows come again, and are not told again.
    """

    def __init__(self, path: Path):
        self._path = path
        self._inode, self._offset = -1, 0
        self._number = self._told = 0
        """Rows read of the file as it is, and rows told of."""

    def new_rows(self) -> list[Row]:
        """Return the rows that have come since the last call."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            # A log that was cut is another file, put in its place.
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset, self._number = status.st_ino, 0, 0
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode().splitlines()
        fresh = lines[max(0, self._told - self._number) :]
        self._number += len(lines)
        self._told = max(self._told, self._number)
        return [parse(line) for line in fresh]


def _rows(path: Path) -> Iterator[tuple[Row, str]]:
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return  # the writer was killed in the middle of it
        try:
            yield parse(line), line
        except (json.JSONDecodeError, TypeError) as error:
            raise TableError(f"{path} line {number}: no row of a training log ({error}); delete {path.parent}") from error
