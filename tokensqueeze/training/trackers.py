"""The training log's figures for those who watch it elsewhere: TensorBoard, Weights & Biases, MLflow.

Fed on the driver from the log's rows, which are known by their number: a resumed training goes on with the first row that
was not handed on. A tracker that fails is left out after one warning; no training fails because of one.
"""

import importlib.util
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

from tokensqueeze.errors import TableError
from tokensqueeze.tables import read_json, write_json
from tokensqueeze.training.job import TrainingJob
from tokensqueeze.training.training_log import DevRow, Row, StepRow

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "tokensqueeze"
"""Of the runs at Weights & Biases, and of the experiment at MLflow."""
_STATE = "trackers.json"
_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """One place that figures go to."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


@dataclass
class Handed:
    """How much of a training's log a tracker has: what it is called there, and the number of rows."""

    run_id: str = ""
    rows: int = 0


Opener = Callable[[TrainingJob, Handed], Tracker]
"""Makes a tracker; one that starts anew sets what was handed on back to no rows."""


@dataclass
class Trackers:
    """All trackers of one training; each gets every row once.

    Killed between handing a row on and noting so, a tracker but TensorBoard gets that row twice, with the same figures.
    """

    job: TrainingJob
    warn: Callable[[str], None]
    handed: dict[TrackerName, Handed]
    trackers: dict[TrackerName, Tracker] = field(default_factory=dict)
    row_number: int = 0
    """Rows of the log taken so far."""

    @classmethod
    def open(
        cls, job: TrainingJob, *, warn: Callable[[str], None], openers: Mapping[TrackerName, Opener] | None = None
    ) -> "Trackers":
        """Open those that the settings name; under `auto`, those that are installed."""
        trackers = cls(job, warn, _read_state(job))
        for name in _wanted(job):
            handed = trackers.handed.setdefault(name, Handed())
            with trackers._warning(name):
                trackers.trackers[name] = (openers or _OPENERS)[name](job, handed)
        return trackers

    def take(self, rows: Sequence[Row]) -> None:
        """Hand on the rows that a tracker does not have; they follow those that came before."""
        for number, row in enumerate(rows, start=self.row_number + 1):
            figures = figures_of(row)
            for name in list(self.trackers):
                if figures and number > self.handed[name].rows:
                    with self._warning(name):
                        self.trackers[name].log(row.step, figures)
        self.row_number += len(rows)
        if rows:
            for name in self.trackers:
                self.handed[name].rows = max(self.handed[name].rows, self.row_number)
            with suppress(OSError):
                # What is lost with it is that a resumed training sends some rows again.
                _write_state(self.job, self.handed)

    def close(self, *, failed: bool) -> None:
        for name in list(self.trackers):
            with self._warning(name):
                self.trackers[name].close(failed=failed)

    @contextmanager
    def _warning(self, name: TrackerName) -> Iterator[None]:
        """Turn what a tracker raises into one warning, and leave the tracker out from then on."""
        try:
            yield
        except Exception as error:
            self.trackers.pop(name, None)
            why = next(iter(str(error).splitlines()), type(error).__name__)
            missing = f"; pip install {_MODULES[name]}" if isinstance(error, ModuleNotFoundError) else ""
            self.warn(
                f"training.trackers: {name} gets no figures: {why}{missing}. Training goes on; "
                f"{self.job.log_path.name} has them"
            )


def figures_of(row: Row) -> dict[str, float]:
    """Return a row's figures under the names that trackers group by."""
    match row:
        case StepRow():
            named = {f"training/{name}": value for name, value in asdict(row).items() if name not in ("step", "seconds")}
            named["training/tokens_per_second"] = row.tokens_per_second
        case DevRow():
            named = {"dev/accuracy": row.dev_accuracy, "dev/length": row.dev_length}
        case _:
            named = {}
    return {name: float(value) for name, value in named.items() if value is not None}


class _TensorBoard:
    """Event files in `tensorboard` beside the log, written anew from the log's first row at every start."""

    def __init__(self, job: TrainingJob, handed: Handed):
        from tensorboardX import SummaryWriter

        folder = job.output_dir / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        handed.rows = 0
        self._writer = SummaryWriter(str(folder), flush_secs=10, write_to_disk=True)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _WandB:
    """A run that goes on under its id; offline, in `wandb` beside the log, unless a key or a mode is set."""

    def __init__(self, job: TrainingJob, handed: Handed):
        import wandb  # pyright: ignore[reportMissingImports]

        handed.run_id = handed.run_id or uuid.uuid4().hex[:12]
        mode = None if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY") else "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=handed.run_id,
            name=job.name,
            dir=str(job.output_dir),
            resume="allow",
            mode=mode,
            config=_settings(job),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Its own count of steps goes up by every row; a row's step is the one that is meant.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"step": step, **figures})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """A run at `MLFLOW_TRACKING_URI`, or in `mlflow.db` beside the log."""

    def __init__(self, job: TrainingJob, handed: Handed):
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{job.output_dir / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        if not handed.run_id:
            handed.run_id = self._client.create_run(experiment_id, run_name=job.name).info.run_id
            for key, value in _settings(job).items():
                self._client.log_param(handed.run_id, key, value)
        self._run_id = handed.run_id
        self._client.update_run(self._run_id, status="RUNNING")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = round(1000 * time.time())
        self._client.log_batch(self._run_id, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _wanted(job: TrainingJob) -> list[TrackerName]:
    chosen = job.settings.trackers
    if chosen != "auto":
        return list(dict.fromkeys(chosen))
    others: list[TrackerName] = [name for name in get_args(TrackerName) if name != "tensorboard"]
    return ["tensorboard", *(name for name in others if importlib.util.find_spec(_MODULES[name]) is not None)]


def _settings(job: TrainingJob) -> dict[str, Any]:
    objective = {f"objective.{name}": value for name, value in job.objective.model_dump().items()}
    training = {f"training.{name}": value for name, value in job.settings.model_dump().items()}
    return {"model": job.model_dir.name, **objective, **training}


def _read_state(job: TrainingJob) -> dict[TrackerName, Handed]:
    """Return what earlier starts of this very training handed on."""
    try:
        state = read_json(job.output_dir / _STATE)
    except TableError:  # not there at the first start; and what can't be read is not worth a training
        return {}
    if state.get("job_name") != job.name:
        return {}
    return {name: Handed(**handed) for name, handed in state["handed"].items()}


def _write_state(job: TrainingJob, handed: Mapping[TrackerName, Handed]) -> None:
    write_json(job.output_dir / _STATE, {"job_name": job.name, "handed": {name: asdict(own) for name, own in handed.items()}})


_OPENERS: dict[TrackerName, Opener] = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}
