"""The log after a kill: no step twice, none missing, no torn line."""

import json
from pathlib import Path

import pytest

from tokensqueeze.errors import TableError
from tokensqueeze.training import training_log
from tokensqueeze.training.training_log import DevRow, StepRow


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [DevRow(0, 0.5, 12.25), _step(1), _step(2), DevRow(2, 0.75, 9.0)]
    path = _written(tmp_path, rows)
    assert training_log.read(path) == rows
    assert training_log.step_rows(path) == rows[1:3]
    assert training_log.dev_rows(path) == [rows[0], rows[3]]


def test_lines_are_plain_json_objects_with_the_figures_names(tmp_path: Path) -> None:
    path = _written(tmp_path, [_step(3), DevRow(3, 1.0, 7.5)])
    step, dev = [json.loads(line) for line in path.read_text().splitlines()]
    assert (step["step"], step["loss"], step["rejected_logps"]) == (3, 0.25, None)
    assert dev == {"step": 3, "dev_accuracy": 1.0, "dev_length": 7.5}


def test_truncation_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = _written(tmp_path, [DevRow(0, 0.5, 12.0), _step(1), _step(2), DevRow(2, 0.5, 9.0), _step(3)])
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    training_log.keep_until(path, 2)
    training_log.append(path, _step(3))
    assert [row.step for row in training_log.read(path)] == [0, 1, 2, 2, 3]


def test_fresh_start_empties_the_log_or_makes_an_empty_one(tmp_path: Path) -> None:
    path = _written(tmp_path, [DevRow(0, 0.5, 12.0), _step(1)])
    for log in (path, tmp_path / "new.jsonl"):
        training_log.keep_until(log, -1)
        assert log.read_text() == ""


def test_line_that_is_no_row_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = _written(tmp_path, [_step(1)])
    with path.open("a") as file:
        file.write('{"step": 2}\n')
    with pytest.raises(TableError, match="line 2: no row of a training log"):
        training_log.read(path)


def test_figure_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        training_log.append(tmp_path / "log.jsonl", DevRow(1, float("nan"), 1.0))


def _written(folder: Path, rows: list[StepRow | DevRow]) -> Path:
    path = folder / "log.jsonl"
    for row in rows:
        training_log.append(path, row)
    return path


def _step(step: int) -> StepRow:
    return StepRow(
        step=step,
        epoch=1,
        loss=0.25,
        dpo_loss=None,
        sft_loss=0.25,
        chosen_logps=-3.5,
        rejected_logps=None,
        ref_chosen_logps=-3.0,
        ref_rejected_logps=None,
        margin=None,
        preference_accuracy=None,
        grad_norm=1.5,
        learning_rate=1e-3,
        tokens=100,
        seconds=0.5,
    )
