"""DeepSpeed checkpoints that are there whole or not at all: a marker, written last, says that one is complete.

Weights, optimiser moments and master weights are DeepSpeed's; the learning rate and the order of the data follow from
the step, and nothing in the loop draws a random number, so the step is all there is to restore beyond them.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from tokensqueeze.errors import TrainingError
from tokensqueeze.tables import make_folder, read_json, write_json

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MARKER = "complete.json"
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    job_name: str


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
    markers = [(path.parent, read_json(path)) for path in folder.glob(f"step-*/{MARKER}")]
    found = [Checkpoint(path, int(marker["step"]), str(marker["job_name"])) for path, marker in markers]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def remove_incomplete(folder: Path) -> None:
    """Remove what a killed training left half-written, so that nothing of it mixes with what comes."""
    for path in folder.glob("step-*"):
        if not (path / MARKER).is_file():
            shutil.rmtree(path)


def save_checkpoint(engine: "DeepSpeedEngine", folder: Path, *, step: int, job_name: str) -> None:
    """Save a checkpoint and drop all but the last two. Every worker calls this."""
    path = checkpoint_path(folder, step)
    if dist.get_rank() == 0:
        make_folder(folder)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=path.name, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        write_json(path / MARKER, {"step": step, "job_name": job_name})
        for old in complete_checkpoints(folder)[:-_KEPT]:
            # The marker goes first: half a checkpoint must not look like a whole one.
            (old.path / MARKER).unlink()
            shutil.rmtree(old.path)


def load_checkpoint(engine: "DeepSpeedEngine", folder: Path, *, step: int) -> None:
    """Go on from a checkpoint. Every worker calls this. Raises `TrainingError` if DeepSpeed can't read it."""
    path = checkpoint_path(folder, step)
    loaded, _ = engine.load_checkpoint(str(folder), tag=path.name, load_lr_scheduler_states=False)
    if loaded is None:
        raise TrainingError(
            f"{path}: DeepSpeed can't read this checkpoint; delete it, and training goes on from the one before"
        )


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"
