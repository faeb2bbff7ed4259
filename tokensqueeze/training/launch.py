"""Start or resume a training from the driver: check everything first, then Ray Train; errors come back as one sentence.

A killed training is resumed by the same call, and gives the log and the weights it would have given in one go.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from tokensqueeze.config import ObjectiveSettings, TrainingSettings
from tokensqueeze.errors import TokenSqueezeError, TrainingError
from tokensqueeze.objectives.objective import needs_rejected
from tokensqueeze.schema import Problem, ScoredPair
from tokensqueeze.tables import Table, make_folder, write_text
from tokensqueeze.training import training_log
from tokensqueeze.training.batches import num_steps
from tokensqueeze.training.checkpoints import newest_checkpoint, remove_incomplete
from tokensqueeze.training.job import TrainingJob, job_name
from tokensqueeze.training.pairs import UsablePairs, usable_pairs
from tokensqueeze.training.training_log import DevRow, StepRow

_COLLECTIVE_SECONDS = 4 * 3600
"""How long a worker waits for the others: the first one decodes the dev problems meanwhile. Ray notices a dead one."""
_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands after a step; `dev_accuracy` is the latest, `tokens_per_second` the step's."""

    step: int
    steps: int
    loss: float
    dev_accuracy: float | None
    tokens_per_second: float


@dataclass(frozen=True)
class TrainingOutcome:
    model_dir: Path
    log_path: Path
    steps: int
    num_pairs: int
    num_left_out: int
    """Pairs with a side longer than `max_length`."""
    tokens: int
    """Read in all steps together."""
    seconds: float
    """Of all steps together; start, dev decoding and checkpoints are not in it."""
    base_dev_accuracy: float | None
    dev_accuracy: float | None


def train_model(
    *,
    pairs: Table[ScoredPair],
    settings: TrainingSettings,
    objective: ObjectiveSettings,
    model_dir: Path,
    output_dir: Path,
    dev_problems: Sequence[Problem],
    dev_max_tokens: int,
    think_end: str,
    progress: Callable[[TrainingProgress], None],
) -> TrainingOutcome:
    """Train `model_dir` on the pairs into `output_dir`/model; return at once if that is there. Ray must be running.

    `progress` is called from a thread of its own, once per optimiser step. Raises `TrainingError`, or whichever of the
    package's errors a worker raised; `NoPairsError` where no pair is left.
    """
    usable = usable_pairs(pairs, max_length=settings.max_length, needs_rejected=needs_rejected(objective))
    steps = num_steps(num_pairs=len(usable.pairs), batch_size=settings.batch_size, epochs=settings.epochs)
    name = job_name(settings=settings, objective=objective, model_dir=model_dir, usable=usable)
    make_folder(output_dir)
    resume_from = newest_checkpoint(output_dir / "checkpoints", job_name=name)
    job = TrainingJob(
        pairs=Table(pairs.path.absolute(), ScoredPair),
        settings=settings,
        objective=objective,
        model_dir=model_dir.absolute(),
        output_dir=output_dir.absolute(),
        dev_problems=list(dev_problems[: settings.dev_problems]),
        dev_max_tokens=dev_max_tokens,
        think_end=think_end,
        name=name,
        resume_step=resume_from.step if resume_from else None,
    )
    if not job.exported_dir.is_dir():
        remove_incomplete(job.checkpoints_dir)
        training_log.keep_until(job.log_path, -1 if job.resume_step is None else job.resume_step)
        with _reporting(job.log_path, steps, progress):
            _fit(job)
    return _outcome(job, usable)


def _fit(job: TrainingJob) -> None:
    settings = job.settings
    on_gpu = settings.gpus_per_worker > 0
    # Ray Train keeps a record of its own here; ours is the checkpoints.
    records = job.output_dir / ".ray_train"
    shutil.rmtree(records, ignore_errors=True)
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": 1, "GPU": settings.gpus_per_worker} if on_gpu else {"CPU": 1},
        ),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=_COLLECTIVE_SECONDS),
        run_config=RunConfig(
            name="training",
            storage_path=str(records),
            failure_config=FailureConfig(max_failures=0),
            # What goes wrong comes back as an exception; the rest is of no interest to who started it.
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _plain_error(error, job.output_dir) from None
    finally:
        shutil.rmtree(records, ignore_errors=True)


def _train_loop(config: dict[str, Any]) -> None:
    job: TrainingJob = config["job"]
    if not job.settings.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Here and not at the top: DeepSpeed and transformers are for the workers.
    from tokensqueeze.training.worker import run_worker

    run_worker(job)


def _plain_error(error: Exception, output_dir: Path) -> TokenSqueezeError:
    """Return the package's own error that a worker raised, or else a sentence about the first failure."""
    failures = dict(getattr(error, "worker_failures", {})) or {0: getattr(error, "controller_failure", error)}
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, TokenSqueezeError):
            return cause
    path = output_dir / "training_failure.txt"
    write_text(path, str(error))
    rank, cause = next(iter(causes.items()))
    first_line = next(iter(str(cause).splitlines()), "")
    return TrainingError(
        f"worker {rank} failed: {type(cause).__name__}: {first_line}; the whole trace is in {path}. Run the same "
        "command again to go on from the newest checkpoint"
    )


def _outcome(job: TrainingJob, usable: UsablePairs) -> TrainingOutcome:
    steps, dev = training_log.step_rows(job.log_path), training_log.dev_rows(job.log_path)
    return TrainingOutcome(
        model_dir=job.exported_dir,
        log_path=job.log_path,
        steps=len(steps),
        num_pairs=len(usable.pairs),
        num_left_out=len(usable.left_out),
        tokens=sum(row.tokens for row in steps),
        seconds=sum(row.seconds for row in steps),
        base_dev_accuracy=dev[0].dev_accuracy if dev else None,
        dev_accuracy=dev[-1].dev_accuracy if dev else None,
    )


@contextmanager
def _reporting(log_path: Path, steps: int, progress: Callable[[TrainingProgress], None]) -> Iterator[None]:
    """Report each step as it appears in the log; the workers write it, on whichever node they are."""
    stop = threading.Event()
    dev = training_log.dev_rows(log_path)
    tail = _Tail(log_path, log_path.stat().st_size, steps, progress, dev[-1].dev_accuracy if dev else None)
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            while not stop.wait(_POLL_SECONDS):
                tail.report()
            tail.report()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=follow, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


@dataclass
class _Tail:
    path: Path
    offset: int
    steps: int
    progress: Callable[[TrainingProgress], None]
    dev_accuracy: float | None

    def report(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.decode().splitlines():
            row = training_log.parse(line)
            match row:
                case DevRow():
                    self.dev_accuracy = row.dev_accuracy
                case StepRow():
                    rate = row.tokens / max(row.seconds, 1e-9)
                    self.progress(TrainingProgress(row.step, self.steps, row.loss, self.dev_accuracy, rate))
