"""DeepSpeed checkpoints that are there whole or not at all: a marker, written last, says that one is complete.

Weights, optimiser moments and master weights are DeepSpeed's; the learning rate and the order of the data follow from
the step, and nothing in the loop draws a random number, so the step is all there is to restore beyond them. Under ZeRO
they are cut by the number of workers; where another number goes on, they are joined and cut anew.
"""

import argparse
import contextlib
import errno
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from tokensqueeze.errors import StorageError, TrainingError
from tokensqueeze.tables import make_folder, read_json, write_json
from tokensqueeze.training import training_log
from tokensqueeze.training.job import TrainingJob
from tokensqueeze.training.training_log import DevRow

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MARKER = "complete.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WRITER_MESSAGES = ("PytorchStreamWriter", "inline_container", "iostream error", "basic_ios")
"""How torch's writer, which is C++ and knows no error numbers, says that it could not write."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    job_name: str
    num_workers: int | None = None
    """How many workers saved it."""
    dev: DevRow | None = None
    """The look at the dev accuracy at its step, if there was one."""


def go_back(job: TrainingJob) -> Checkpoint | None:
    """Bring folder and log back to the newest complete checkpoint and return it; None where it is back to the start.

    Raises `TrainingError` where the checkpoints are another training's.
    """
    newest = newest_checkpoint(job.checkpoints_dir, job_name=job.name)
    remove_incomplete(job.checkpoints_dir)
    training_log.keep_until(job.log_path, newest.step if newest else -1)
    return newest


def newest_checkpoint(folder: Path, *, job_name: str) -> Checkpoint | None:
    """Return the newest complete checkpoint, if there is one. Raises `TrainingError` where it is another training's."""
    checkpoints = complete_checkpoints(folder)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    if newest.job_name != job_name:
        raise TrainingError(
            f"{newest.path}: made with other settings, pairs or base model ({newest.job_name}, now {job_name}); delete "
            f"{folder.parent} or choose another output folder"
        )
    return newest


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the complete checkpoints, oldest first."""
    found = [_checkpoint(marker) for marker in folder.glob(f"step-*/{MARKER}")]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def best_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the one of highest dev accuracy; of equal ones that of the shortest completions, of those the latest."""
    measured = [(c.dev.dev_accuracy, -c.dev.dev_length, c.step, c) for c in checkpoints if c.dev]
    return max(measured, key=lambda rank: rank[:3])[-1] if measured else None


def superseded(checkpoints: Sequence[Checkpoint], *, keep: int) -> list[Checkpoint]:
    """Return those, oldest first, that are neither the best nor of the last `keep`."""
    best = best_checkpoint(checkpoints)
    return [checkpoint for checkpoint in checkpoints[:-keep] if checkpoint != best]


def remove_incomplete(folder: Path) -> None:
    """Remove what a killed training left half-written, so that nothing of it mixes with what comes."""
    for path in folder.glob("step-*"):
        if not (path / MARKER).is_file():
            shutil.rmtree(path)


def save_checkpoint(
    engine: "DeepSpeedEngine", folder: Path, *, step: int, job_name: str, keep: int, dev: DevRow | None
) -> None:
    """Save a checkpoint and drop all but the best and the last `keep`; every worker calls this.

    Raises `StorageError`, on the worker that meets it, where the disk is full: the checkpoints before stay as they are.
    """
    path = checkpoint_path(folder, step)
    if dist.get_rank() == 0:
        make_folder(folder)
    dist.barrier()
    with _storage_errors(path):
        engine.save_checkpoint(str(folder), tag=path.name, save_latest=False)
        _flush_to_disk(path, rank=dist.get_rank())
    dist.barrier()
    if dist.get_rank() == 0:
        marker = {"step": step, "job_name": job_name, "num_workers": dist.get_world_size()}
        if dev:
            marker |= {"dev_accuracy": dev.dev_accuracy, "dev_length": dev.dev_length}
        write_json(path / MARKER, marker)
        for old in superseded(complete_checkpoints(folder), keep=keep):
            # The marker goes first: half a checkpoint must not look like a whole one.
            (old.path / MARKER).unlink()
            shutil.rmtree(old.path)
    # Whoever leaves may end the training, and with it the first worker.
    dist.barrier()


def load_checkpoint(engine: "DeepSpeedEngine", checkpoint: Checkpoint) -> None:
    """Go on from a checkpoint, whatever number of workers saved it; every worker calls this.

    Raises `TrainingError` if DeepSpeed can't read it.
    """
    path, saved_by = checkpoint.path, checkpoint.num_workers or dist.get_world_size()
    if saved_by == dist.get_world_size() or engine.zero_optimization_stage() == 0:
        loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name, load_lr_scheduler_states=False)
    else:
        loaded = _load_joined(engine, checkpoint)
    if loaded is None:
        raise TrainingError(
            f"{path}: DeepSpeed can't read this checkpoint; delete it, and training goes on from the one before"
        )


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def storage_failure(error: BaseException) -> str | None:
    """Return what a full disk or a file that grew too large said, in whichever way it was said; None for other errors."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return os.strerror(error.errno)
    text = str(error).strip()
    if isinstance(error, RuntimeError) and any(message in text for message in _WRITER_MESSAGES):
        return text.splitlines()[0]
    return None


def _load_joined(engine: "DeepSpeedEngine", checkpoint: Checkpoint) -> str | None:
    """Load a checkpoint of another number of workers by way of DeepSpeed's universal form, which is not cut."""
    # Without a marker of its own, it goes with the next `remove_incomplete` if it is left behind.
    joined = checkpoint.path.with_name(f"{checkpoint.path.name}-joined")
    if dist.get_rank() == 0:
        shutil.rmtree(joined, ignore_errors=True)
        with _storage_errors(joined):
            _join(checkpoint, joined)
    dist.barrier()
    config = engine._config
    assert config is not None
    config.load_universal_checkpoint = True
    try:
        loaded, _ = engine.load_checkpoint(str(joined.parent), tag=joined.name, load_lr_scheduler_states=False)
    finally:
        config.load_universal_checkpoint = False
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(joined)
    return loaded


def _join(checkpoint: Checkpoint, joined: Path) -> None:
    from deepspeed.checkpoint.ds_to_universal import main

    arguments = argparse.Namespace(
        input_folder=str(checkpoint.path),
        output_folder=str(joined),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # Says what is cut along which dimension by tensor parallelism, of which there is none here.
        inject_missing_state=True,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(arguments)
    except (AssertionError, KeyError, ValueError, NotImplementedError) as error:
        raise TrainingError(
            f"{checkpoint.path}: saved by {checkpoint.num_workers} workers, now there are {dist.get_world_size()}, and "
            f"DeepSpeed can't cut it anew ({type(error).__name__}: {error}); go on with training.num_workers = "
            f"{checkpoint.num_workers}"
        ) from error
    # DeepSpeed's note of which one was made last.
    (joined.parent / "latest_universal").unlink(missing_ok=True)


def _checkpoint(marker: Path) -> Checkpoint:
    values = read_json(marker)
    step = int(values["step"])
    dev = DevRow(step, values["dev_accuracy"], values["dev_length"]) if "dev_accuracy" in values else None
    return Checkpoint(marker.parent, step, str(values["job_name"]), values.get("num_workers"), dev)


def _flush_to_disk(path: Path, *, rank: int) -> None:
    """Flush what this worker wrote: some disks, above all distant ones, say only then that they are full."""
    for file in path.glob("*.pt"):
        if rank == 0 or f"pp_rank_{rank}_" in file.name:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (reason := storage_failure(error)) is None:
            raise
        raise StorageError(
            f"{path}: the checkpoint could not be written: {reason}; the ones before are whole. Free some space, lower "
            "training.keep_checkpoints or choose another --output, and run the same command again to go on"
        ) from error
