"""The training log: one JSON object per optimiser step or look at the dev accuracy; each once, none missing."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokensqueeze.errors import TableError
from tokensqueeze.tables import write_text


@dataclass(frozen=True)
class StepRow:
    """One optimiser step. Log-probabilities are means over the batch's pairs of sums over a completion, in nats."""

    step: int
    epoch: int
    loss: float
    dpo_loss: float | None
    sft_loss: float
    chosen_logps: float
    rejected_logps: float | None
    ref_chosen_logps: float
    ref_rejected_logps: float | None
    margin: float | None
    """β·(log ratio of the chosen side − that of the rejected one)."""
    preference_accuracy: float | None
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Read in this step, both sides with their prompts."""
    seconds: float


@dataclass(frozen=True)
class DevRow:
    """Greedy decoding of the dev problems after `step` steps; `dev_length` is the mean completion's, in tokens."""

    step: int
    dev_accuracy: float
    dev_length: float


Row = StepRow | DevRow


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
    return DevRow(**values) if "dev_accuracy" in values else StepRow(**values)


def step_rows(path: Path) -> list[StepRow]:
    return [row for row in read(path) if isinstance(row, StepRow)]


def dev_rows(path: Path) -> list[DevRow]:
    return [row for row in read(path) if isinstance(row, DevRow)]


def _rows(path: Path) -> Iterator[tuple[Row, str]]:
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return  # the writer was killed in the middle of it
        try:
            yield parse(line), line
        except (json.JSONDecodeError, TypeError) as error:
            raise TableError(f"{path} line {number}: no row of a training log ({error}); delete {path.parent}") from error
