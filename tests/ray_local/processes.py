"""Trainings in processes that are started once: gloo without Ray, since a start takes longer than a training this small."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tests.ray_local.training_world import Training
from tokensqueeze.errors import TokenSqueezeError
from tokensqueeze.training.job import TrainingJob


def train(trainings: Mapping[str, Training], *, num_workers: int, folder: Path) -> dict[str, str]:
    """Have some processes do trainings together, one after the other; return each one's error, or an empty text."""
    jobs = {name: _job(training) for name, training in trainings.items()}
    start_processes(_worker, args=(num_workers, folder, jobs), nprocs=num_workers, start_method="spawn")
    return json.loads((folder / "errors.json").read_text())


def _job(training: Training) -> TrainingJob:
    return TrainingJob(
        pairs=training.table(),
        settings=training.settings,
        objective=training.objective,
        model_dir=training.world.base_dir,
        output_dir=training.output_dir,
        dev_problems=training.world.problems,
        think_end="</think>",
        name=training.output_dir.name,
    )


def _worker(rank: int, num_workers: int, folder: Path, jobs: Mapping[str, TrainingJob]) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "WORLD_SIZE": str(num_workers), "LOCAL_RANK": str(rank)}
    from tokensqueeze.training.worker import run_worker

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_workers)
    errors = {}
    for name, job in jobs.items():
        errors[name] = ""
        try:
            run_worker(job)
        except TokenSqueezeError as error:
            errors[name] = f"{type(error).__name__}: {error}"
    if rank == 0:
        (folder / "errors.json").write_text(json.dumps(errors))
    dist.barrier()
    dist.destroy_process_group()
