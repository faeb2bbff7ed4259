"""Start or resume a training from the driver: check everything first, then Ray Train; errors come back as one sentence.

A killed training is resumed by the same call, and gives the log and the weights it would have given in one go.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.train import (
    FailureConfig,
    LoggingConfig,
    PreemptionError,
    PreemptionInfo,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer

from tokensqueeze.config import ObjectiveSettings, TrainingSettings, VerifierSettings
from tokensqueeze.errors import SettingsError, StorageError, TokenSqueezeError, TrainingError
from tokensqueeze.objectives.objective import needs_reference, needs_rejected
from tokensqueeze.schema import Problem, ScoredPair
from tokensqueeze.tables import Table, make_folder, read_json, write_json, write_text
from tokensqueeze.training import training_log
from tokensqueeze.training.batches import num_steps
from tokensqueeze.training.checkpoints import (
    best_checkpoint,
    complete_checkpoints,
    go_back,
    newest_checkpoint,
    remove_incomplete,
    storage_failure,
)
from tokensqueeze.training.guards import check_scores
from tokensqueeze.training.job import DEFAULT_VERIFIER, Preempted, TrainingJob, job_name, longest_sequence
from tokensqueeze.training.pairs import UsablePairs, usable_pairs
from tokensqueeze.training.preemption import PreemptionWatch
from tokensqueeze.training.trackers import Trackers
from tokensqueeze.training.training_log import DevRow, LogTail, Row, StepRow, WarningRow

_COLLECTIVE_SECONDS = 4 * 3600
"""How long a worker waits for the others: one may still be decoding dev problems. Ray notices a dead one."""
_POLL_SECONDS = 0.25
GLIBC_TUNABLES = "glibc.malloc.mmap_threshold=4194304:glibc.malloc.hugetlb=1"
"""For workers on CPUs. Activations come and go in many sizes, and left in the heap they leave holes: a third more memory
for a 135 M model. Mapped on their own they go back at once; huge pages keep that cheap."""
_EXPORTED = "exported.json"
"""Which checkpoint the model beside it is; written last."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands after a step; `dev_accuracy` is the latest, the other figures are the step's."""

    step: int
    steps: int
    loss: float
    dev_accuracy: float | None
    tokens_per_second: float
    margin: float | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    preference_accuracy: float | None = None
    max_memory_bytes: int = 0
    """Most that any worker has held so far."""
    seconds_left: float | None = None
    """By the pace of this start's steps, with what lies between them."""


@dataclass(frozen=True)
class TrainingOutcome:
    model_dir: Path
    log_path: Path
    steps: int
    num_pairs: int
    left_out: Mapping[str, int]
    """How many pairs were not trained on, by the reason."""
    tokens: int
    """Read in all steps together."""
    seconds: float
    """Of all steps together; start, dev decoding and checkpoints are not in it."""
    base_dev_accuracy: float | None
    dev_accuracy: float | None
    """Of the model that was exported."""

    @property
    def num_left_out(self) -> int:
        return sum(self.left_out.values())


def train_model(
    *,
    pairs: Table[ScoredPair],
    settings: TrainingSettings,
    objective: ObjectiveSettings,
    model_dir: Path,
    output_dir: Path,
    dev_problems: Sequence[Problem],
    think_end: str,
    verifier: VerifierSettings = DEFAULT_VERIFIER,
    progress: Callable[[TrainingProgress], None],
    warn: Callable[[str], None] = lambda text: None,
) -> TrainingOutcome:
    """Train `model_dir` on the pairs into `output_dir`/model; return at once if that is there. Ray must be running.

    `progress`, once per optimiser step, and `warn` are called from a thread of their own. Raises `TrainingError`, or whichever
    of the package's errors a worker raised; `NoPairsError` where no pair is left.
    """
    usable = usable_pairs(
        pairs,
        max_length=longest_sequence(settings, model_dir),
        needs_rejected=needs_rejected(objective),
        needs_reference=needs_reference(objective),
    )
    if needs_reference(objective):
        check_scores(pairs, usable, model_dir=model_dir)
    steps = num_steps(num_pairs=len(usable.pairs), batch_size=settings.batch_size, epochs=settings.epochs)
    dev_problems = list(dev_problems[: settings.dev_problems])
    name = job_name(
        settings=settings,
        objective=objective,
        model_dir=model_dir,
        usable=usable,
        dev_problems=dev_problems,
        think_end=think_end,
        verifier=verifier,
    )
    make_folder(output_dir)
    job = TrainingJob(
        pairs=Table(pairs.path.absolute(), ScoredPair),
        settings=settings,
        objective=objective,
        model_dir=model_dir.absolute(),
        output_dir=output_dir.absolute(),
        dev_problems=dev_problems,
        think_end=think_end,
        verifier=verifier,
        name=name,
    )
    if settings.export == "best" and not job.dev_problems:
        raise SettingsError('training.export: "best" needs dev problems to tell by; give some, or export the last')
    newest_checkpoint(job.checkpoints_dir, job_name=name)
    if not _is_exported(job):
        # A kill between the next export and its note must not leave the old note beside the new model.
        (job.output_dir / _EXPORTED).unlink(missing_ok=True)
        go_back(job)
        with _reporting(job, steps, progress, warn):
            _fit(job)
        write_json(job.output_dir / _EXPORTED, _export_note(job))
    return _outcome(job, usable)


class _Failures(UserCallback):
    """Tells Ray Train which of the workers' failures are worth another start: it replaces workers after any.

    Runs in Ray Train's controller; what is raised here is taken for its own error.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for cause in worker_exceptions.values():
            if isinstance(cause, Preempted):
                # Not counted: nothing has failed, and what was done is saved.
                raise PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={}))
        for cause in worker_exceptions.values():
            if own := _own_error(cause):
                # Another start would come to the same.
                raise own


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
            num_workers=(settings.min_workers, settings.num_workers) if settings.min_workers else settings.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": 1, "GPU": settings.gpus_per_worker} if on_gpu else {"CPU": 1},
        ),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=_COLLECTIVE_SECONDS),
        run_config=RunConfig(
            name="training",
            storage_path=str(records),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            callbacks=[_Failures()],
            # What goes wrong comes back as an exception; the rest is of no interest to who started it.
            logging_config=LoggingConfig(log_level="CRITICAL"),
            worker_runtime_env={"env_vars": {} if on_gpu else {"GLIBC_TUNABLES": GLIBC_TUNABLES}},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        # Of a save that found the disk full, the half that was written.
        remove_incomplete(job.checkpoints_dir)
        raise _plain_error(error, job) from None
    finally:
        shutil.rmtree(records, ignore_errors=True)


def _train_loop(config: dict[str, Any]) -> None:
    job: TrainingJob = config["job"]
    if not job.settings.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Here and not at the top: DeepSpeed and transformers are for the workers.
    from tokensqueeze.training.worker import run_worker

    run_worker(job, preempted=PreemptionWatch().agreed)


def _plain_error(error: Exception, job: TrainingJob) -> TokenSqueezeError:
    """Return the package's own error that a worker raised, or else a sentence about the first failure."""
    failures = dict(getattr(error, "worker_failures", {})) or {0: getattr(error, "controller_failure", error)}
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if own := _own_error(cause):
            return own
    path = job.output_dir / "training_failure.txt"
    write_text(path, str(error))
    rank, cause = next(iter(causes.items()))
    first_line = next(iter(str(cause).splitlines()), "")
    who, used_up = "Ray Train", ""
    if getattr(error, "worker_failures", None):
        who, used_up = f"worker {rank}", f"training.max_failures = {job.settings.max_failures} new starts are used up; "
    return TrainingError(
        f"{who} failed: {type(cause).__name__}: {first_line}; {used_up}the whole trace is in {path}. Run the same command "
        "again to go on from the newest checkpoint"
    )


def _own_error(cause: BaseException) -> TokenSqueezeError | None:
    if isinstance(cause, TokenSqueezeError):
        return cause
    reason = storage_failure(cause)
    return StorageError(f"{reason} ({cause}); free some space and run the same command again to go on") if reason else None


def _is_exported(job: TrainingJob) -> bool:
    note = job.output_dir / _EXPORTED
    return job.exported_dir.is_dir() and note.is_file() and read_json(note) == _export_note(job)


def _export_note(job: TrainingJob) -> dict[str, str]:
    return {"job_name": job.name, "export": job.settings.export}


def _outcome(job: TrainingJob, usable: UsablePairs) -> TrainingOutcome:
    steps, dev = training_log.step_rows(job.log_path), training_log.dev_rows(job.log_path)
    best = best_checkpoint(complete_checkpoints(job.checkpoints_dir)) if job.settings.export == "best" else None
    exported = best.dev if best else dev[-1] if dev else None
    return TrainingOutcome(
        model_dir=job.exported_dir,
        log_path=job.log_path,
        steps=len(steps),
        num_pairs=len(usable.pairs),
        left_out=usable.left_out_counts,
        tokens=sum(row.tokens for row in steps),
        seconds=sum(row.seconds for row in steps),
        base_dev_accuracy=dev[0].dev_accuracy if dev else None,
        dev_accuracy=exported.dev_accuracy if exported else None,
    )


@contextmanager
def _reporting(
    job: TrainingJob, steps: int, progress: Callable[[TrainingProgress], None], warn: Callable[[str], None]
) -> Iterator[None]:
    """Report each row as it appears in the log; the workers write it, on whichever node they are."""
    stop, failed = threading.Event(), threading.Event()
    tail = LogTail(job.log_path)
    before = tail.new_rows()
    dev = [row.dev_accuracy for row in before if isinstance(row, DevRow)]
    reporter = _Reporter(steps, progress, warn, dev[-1] if dev else None)
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            trackers = Trackers.open(job, warn=warn)
            trackers.take(before)
            last = False
            while not last:
                last = stop.wait(_POLL_SECONDS)
                rows = tail.new_rows()
                reporter.take(rows)
                trackers.take(rows)
            trackers.close(failed=failed.is_set())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=follow, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        failed.set()
        raise
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


@dataclass
class _Reporter:
    steps: int
    progress: Callable[[TrainingProgress], None]
    warn: Callable[[str], None]
    dev_accuracy: float | None
    done: int = 0
    """Steps of this start."""
    started: float = field(default_factory=time.monotonic)

    def take(self, rows: Sequence[Row]) -> None:
        for row in rows:
            match row:
                case DevRow():
                    self.dev_accuracy = row.dev_accuracy
                case WarningRow():
                    self.warn(row.warning)
                case StepRow():
                    self.progress(self._after(row))

    def _after(self, row: StepRow) -> TrainingProgress:
        now = time.monotonic()
        if not self.done:
            # Loading the model and looking at the base come once; they say nothing about what is left.
            self.started = now - row.seconds
        self.done += 1
        return TrainingProgress(
            step=row.step,
            steps=self.steps,
            loss=row.loss,
            dev_accuracy=self.dev_accuracy,
            tokens_per_second=row.tokens_per_second,
            margin=row.margin,
            chosen_reward=row.chosen_reward,
            rejected_reward=row.rejected_reward,
            preference_accuracy=row.preference_accuracy,
            max_memory_bytes=row.max_memory_bytes,
            seconds_left=(now - self.started) / self.done * (self.steps - row.step),
        )
