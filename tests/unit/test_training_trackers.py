"""What TensorBoard, Weights & Biases and MLflow get of the log: every step once, killed or not, and no harm done."""

import importlib.util
import json
import math
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from tokensqueeze.config import DPO, TrainingSettings
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training.job import TrainingJob
from tokensqueeze.training.trackers import Handed, Tracker, Trackers, figures_of
from tokensqueeze.training.training_log import DevRow, PairsRow, Row, StepRow, WarningRow

Names = Literal["auto"] | list[Literal["tensorboard", "wandb", "mlflow"]]


def test_row_gives_its_figures_and_none_that_was_not_measured() -> None:
    assert figures_of(_step(3)) == {
        "training/epoch": 1.0,
        "training/loss": 0.3,
        "training/sft_loss": 0.5,
        "training/chosen_logps": -40.0,
        "training/grad_norm": 1.0,
        "training/learning_rate": 1e-4,
        "training/tokens": 1000.0,
        "training/max_memory_bytes": 1e9,
        "training/tokens_per_second": 2000.0,
    }
    assert figures_of(DevRow(3, 0.5, 12.0)) == {"dev/accuracy": 0.5, "dev/length": 12.0}
    assert figures_of(WarningRow(3, "chosen", "falling")) == figures_of(PairsRow(0, 9, {})) == {}


def test_tensorboard_can_read_every_figure(tmp_path: Path) -> None:
    _track(
        _job(tmp_path, ["tensorboard"]), [PairsRow(0, 9, {}), DevRow(0, 0.5, 12.0), _step(1), _step(2), DevRow(2, 0.75, 9.0)]
    )
    events = _events(tmp_path)
    assert events["training/loss"] == [(1, 0.1), (2, 0.2)]
    assert events["training/tokens_per_second"] == [(1, 2000.0), (2, 2000.0)]
    assert events["dev/accuracy"] == [(0, 0.5), (2, 0.75)]
    assert events["dev/length"] == [(0, 12.0), (2, 9.0)]


def test_tensorboard_of_a_resumed_training_has_every_step_once(tmp_path: Path) -> None:
    job, rows = _job(tmp_path, ["tensorboard"]), [_step(step) for step in range(1, 9)]
    # Killed after step 5: nobody closes the writer. The log is cut back to the checkpoint at step 3.
    killed = Trackers.open(job, warn=pytest.fail)
    killed.take(rows[:5])
    _track(job, rows[:3], rows[3:6], rows[6:])
    assert _events(tmp_path)["training/loss"] == [(step, pytest.approx(step / 10)) for step in range(1, 9)]


def test_trackers_that_keep_what_they_have_get_every_row_once_over_all_starts(tmp_path: Path) -> None:
    job, rows = _job(tmp_path, ["wandb"]), [DevRow(0, 0.5, 12.0), *(_step(step) for step in range(1, 9)), DevRow(8, 0.5, 9.0)]
    scripted = Scripted()
    _track(job, [], rows[:6], openers={"wandb": scripted.open})
    # Cut back to step 3: steps 4 and 5 come again; then a third start, with nothing new at first.
    _track(job, rows[:4], rows[4:8], openers={"wandb": scripted.open})
    _track(job, rows[:8], [], rows[8:], openers={"wandb": scripted.open})
    assert scripted.steps == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert (scripted.opened, scripted.closed) == (["", "named", "named"], [False, False, False])


def test_another_training_in_the_same_folder_starts_anew(tmp_path: Path) -> None:
    scripted = Scripted()
    for name in ("one", "another"):
        _track(_job(tmp_path, ["mlflow"], name=name), [_step(1)], openers={"mlflow": scripted.open})
    assert (scripted.steps, scripted.opened) == ([1, 1], ["", ""])


def test_tracker_that_fails_is_left_out_after_one_warning_and_the_others_go_on(tmp_path: Path) -> None:
    scripted, warnings = Scripted(fails_at=2), []
    trackers = Trackers.open(
        _job(tmp_path, ["mlflow", "wandb"]), warn=warnings.append, openers={"mlflow": scripted.open, "wandb": Scripted().open}
    )
    trackers.take([_step(1), _step(2), _step(3)])
    trackers.take([_step(4)])
    trackers.close(failed=True)
    assert warnings == ["training.trackers: mlflow gets no figures: server gone. Training goes on; training_log.jsonl has them"]
    assert (scripted.steps, scripted.closed) == ([1], [])
    assert json.loads((tmp_path / "trackers.json").read_text())["handed"]["wandb"]["rows"] == 4


def test_note_of_what_was_handed_on_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text('{"job_na')
    scripted = Scripted()
    _track(_job(tmp_path, ["wandb"]), [_step(1)], openers={"wandb": scripted.open})
    assert scripted.steps == [1]
    assert json.loads((tmp_path / "trackers.json").read_text())["job_name"] == "job"


def test_tensorboard_without_a_place_to_write_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    warnings: list[str] = []
    trackers = Trackers.open(_job(tmp_path, ["tensorboard"]), warn=warnings.append)
    trackers.take([_step(1)])
    trackers.close(failed=False)
    (warning,) = warnings
    assert warning.startswith("training.trackers: tensorboard gets no figures: [Errno ")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="Weights & Biases is installed")
def test_tracker_that_is_asked_for_and_not_installed_is_a_warning_with_the_command(tmp_path: Path) -> None:
    warnings: list[str] = []
    Trackers.open(_job(tmp_path, ["wandb"]), warn=warnings.append).take([_step(1)])
    assert warnings == [
        "training.trackers: wandb gets no figures: No module named 'wandb'; pip install wandb. Training goes on; "
        "training_log.jsonl has them"
    ]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs MLflow: pip install mlflow")
def test_mlflow_of_a_resumed_training_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    job, rows = _job(tmp_path, ["mlflow"]), [DevRow(0, 0.5, 12.0), *(_step(step) for step in range(1, 9))]
    _track(job, [], rows[:6], failed=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = json.loads((tmp_path / "trackers.json").read_text())["handed"]["mlflow"]["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    _track(job, rows[:4], rows[4:])
    history = client.get_metric_history(run_id, "training/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [
        (step, pytest.approx(step / 10)) for step in range(1, 9)
    ]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["training.learning_rate"], run.data.params["objective.name"]) == ("5e-06", "dpo")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs Weights & Biases: pip install wandb")
def test_wandb_writes_offline_and_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    job, rows = _job(tmp_path, ["wandb"]), [DevRow(0, 0.5, 12.0), *(_step(step) for step in range(1, 9))]
    _track(job, [], rows[:6])
    _track(job, rows[:4], rows[4:])

    def losses() -> list[tuple[int, float]]:
        found = []
        for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
            for data in _wandb_records(file.read_bytes()):
                history = wandb_internal_pb2.Record.FromString(data).history
                items = {"/".join(item.nested_key): item.value_json for item in history.item}
                if "training/loss" in items:
                    found.append((int(items["step"]), float(items["training/loss"])))
        return found

    # What writes the file is a process of its own, and may still be at it.
    deadline = time.monotonic() + 30
    while len(losses()) < 8 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert losses() == [(step, pytest.approx(step / 10)) for step in range(1, 9)]


@dataclass
class Scripted:
    """A tracker that remembers, and raises at one step."""

    fails_at: int | None = None
    steps: list[int] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)

    def open(self, job: TrainingJob, handed: Handed) -> Tracker:
        self.opened.append(handed.run_id)
        handed.run_id = "named"
        return self

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("server gone\nand a long trace")
        self.steps.append(step)

    def close(self, *, failed: bool) -> None:
        self.closed.append(failed)


def _track(job: TrainingJob, *rows: list[Row] | list[StepRow], failed: bool = False, openers: Any = None) -> None:
    """One start of a training: rows that are there, and then those that come."""
    trackers = Trackers.open(job, warn=pytest.fail, openers=openers)
    for part in rows:
        trackers.take(part)
    trackers.close(failed=failed)


def _events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the one event file by its record format: length, its checksum, an event, its checksum."""
    (path,) = (folder / "tensorboard").iterdir()
    data, position, figures = path.read_bytes(), 0, {}
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event = Event.FromString(data[position + 12 : position + 12 + length])
        position += 12 + length + 4
        for value in event.summary.value:
            # TensorBoard keeps single precision.
            assert math.isfinite(value.simple_value)
            figures.setdefault(value.tag, []).append((event.step, pytest.approx(value.simple_value, rel=1e-6)))
    return figures


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """Read LevelDB's log format: a header of 7 bytes, then blocks of 32 KiB of records with checksum, length and kind."""
    position, parts = 7, []
    while position + 7 <= len(data):
        left_in_block = 2**15 - position % 2**15
        _, length, kind = struct.unpack_from("<IHB", data, position) if left_in_block >= 7 else (0, 0, 0)
        if not kind:  # the rest of a block that is too short for a record
            position += left_in_block
            continue
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or a last part
            yield b"".join(parts)
            parts.clear()


def _job(folder: Path, trackers: Names, *, name: str = "job") -> TrainingJob:
    return TrainingJob(
        pairs=Table(folder / "pairs", ScoredPair),
        settings=TrainingSettings(trackers=trackers),
        objective=DPO(),
        model_dir=folder / "base",
        output_dir=folder,
        dev_problems=[],
        think_end="</think>",
        name=name,
    )


def _step(step: int) -> StepRow:
    return StepRow(
        step=step,
        epoch=1,
        loss=step / 10,
        dpo_loss=None,
        sft_loss=0.5,
        chosen_logps=-40.0,
        rejected_logps=None,
        ref_chosen_logps=None,
        ref_rejected_logps=None,
        chosen_reward=None,
        rejected_reward=None,
        margin=None,
        preference_accuracy=None,
        grad_norm=1.0,
        learning_rate=1e-4,
        tokens=1000,
        seconds=0.5,
        max_memory_bytes=10**9,
    )
