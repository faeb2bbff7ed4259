"""The log after a kill: no step twice, none missing, no torn line."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tokensqueeze.errors import TableError
from tokensqueeze.training import training_log
from tokensqueeze.training.training_log import DevRow, LogTail, PairsRow, Row, StepRow, WarningRow


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    warning = WarningRow(2, "chosen", "step 2: falling")
    rows = [PairsRow(0, 9, {"too long": 2}), DevRow(0, 0.5, 12.25), _step(1), _step(2), warning, DevRow(2, 0.75, 9.0)]
    path = _written(tmp_path, rows)
    assert training_log.read(path) == rows
    assert training_log.step_rows(path) == rows[2:4]
    assert training_log.dev_rows(path) == [rows[1], rows[5]]


def test_log_ratios_are_against_the_reference_where_it_was_asked() -> None:
    row = dataclasses.replace(_step(1), rejected_logps=-9.0, ref_rejected_logps=-7.5)
    assert (row.chosen_log_ratio, row.rejected_log_ratio) == (-0.5, -1.5)
    assert dataclasses.replace(row, ref_chosen_logps=None).chosen_log_ratio is None
    assert _step(1).rejected_log_ratio is None
    assert row.tokens_per_second == 200.0


def test_tail_tells_whole_rows_as_they_come_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tail = LogTail(path)
    assert tail.new_rows() == []
    _written(tmp_path, [DevRow(0, 0.5, 12.0), _step(1)])
    assert tail.new_rows() == [DevRow(0, 0.5, 12.0), _step(1)]
    with path.open("a") as file:
        file.write('{"step": 2, "dev_acc')
    assert tail.new_rows() == []
    with path.open("a") as file:
        file.write('uracy": 0.75, "dev_length": 9.0}\n')
    assert tail.new_rows() == [DevRow(2, 0.75, 9.0)]
    assert tail.new_rows() == []


@pytest.mark.parametrize("rows_before_the_next_look", [0, 1, 2, 4])
def test_tail_of_a_log_that_was_cut_tells_neither_a_row_twice_nor_misses_one(
    tmp_path: Path, rows_before_the_next_look: int
) -> None:
    path = _written(tmp_path, [_step(1), _step(2), _step(3)])
    tail = LogTail(path)
    told = [row.step for row in tail.new_rows()]
    training_log.keep_until(path, 1)
    # Workers do steps 2 and 3 again, and go on.
    for step in range(2, 7):
        if step - 2 == rows_before_the_next_look:
            told += [row.step for row in tail.new_rows()]
        training_log.append(path, _step(step))
    told += [row.step for row in tail.new_rows()]
    assert told == [1, 2, 3, 4, 5, 6]


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


def _written(folder: Path, rows: Sequence[Row]) -> Path:
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
        chosen_reward=None,
        rejected_reward=None,
        margin=None,
        preference_accuracy=None,
        grad_norm=1.5,
        learning_rate=1e-3,
        tokens=100,
        seconds=0.5,
        max_memory_bytes=10**9,
    )
