"""The demo in small: a command of its own, with a Ray of its own, in seconds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tokensqueeze.demo import settings_file
from tokensqueeze.methods import load_settings
from tokensqueeze.pipeline.plan import RunPlan, plan_run
from tokensqueeze.stages.stage import Stage

SMALL = (
    "problems.train.limit=6",
    "problems.train.per_shard=1",
    "problems.dev.limit=4",
    "problems.test.limit=4",
    "problems.test.per_shard=1",
    "sampling.num_samples=6",
    # Hot, and too short for the longer half: some traces are wrong, and longer than the right ones.
    "sampling.temperature=1.0",
    "sampling.max_tokens=120",
    "rewriter.num_candidates=3",
    "rewriter.window_tokens=16",
    "rewriter.max_step_tokens=32",
    "pairing.max_pairs_per_problem=2",
    "training.num_workers=1",
    "training.epochs=1",
    "training.batch_size=2",
    "training.micro_batch_tokens=256",
    "training.checkpoint_every=1",
    "training.dev_every=1000",
    "training.max_dev_accuracy_drop=1.0",
    "evaluation.num_samples=1",
    "evaluation.max_tokens=120",
    "evaluation.token_budget=120",
    "resources.workers=1",
)
"""Six shards of one problem, four of the evaluation."""

SECONDS = 900
"""Longest time that one command may take; on an idle machine none takes a tenth of it."""


@dataclass(frozen=True)
class SmallRun:
    output: Path
    overrides: tuple[str, ...] = SMALL
    options: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        settings = [part for override in self.overrides for part in ("--set", override)]
        return ["demo", "--output", str(self.output), *settings, *self.options]

    def start(self, folder: Path) -> subprocess.Popen[str]:
        """Start the command in a session of its own; what it and its Ray put down temporarily goes to `folder`."""
        return subprocess.Popen(
            [sys.executable, "-m", "tokensqueeze.cli", *self.arguments],
            env=clean_environment() | {"TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, whatever that is."""
        with temporary_folder() as folder, self.start(folder) as process:
            try:
                stdout, stderr = process.communicate(timeout=SECONDS)
            finally:
                kill_with_descendants(process.pid)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def succeed(self) -> str:
        """Run the command to its end and return what it printed."""
        done = self.finish()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def plan(self) -> RunPlan:
        return plan_run(load_settings(settings_file(), self.overrides), self.output / "tables")

    @property
    def training_log(self) -> list[dict[str, Any]]:
        """The rows of the training log without what depends on the clock and on the machine."""
        lines = (self.plan.training_dir / "training_log.jsonl").read_text().splitlines()
        varying = ("seconds", "max_memory_bytes")
        return [{name: value for name, value in json.loads(line).items() if name not in varying} for line in lines]

    @property
    def evaluation(self) -> dict[str, Any]:
        return json.loads((self.output / "evaluation.json").read_text())


def stages_to_scored_pairs(plan: RunPlan) -> list[Stage[Any]]:
    return [plan.sample, plan.verify, plan.select, plan.propose, plan.accept, plan.pair, plan.score]


def evaluation_stages(plan: RunPlan) -> list[Stage[Any]]:
    return [stage for stage in (plan.evaluate_base, plan.evaluate_squeezed) if stage]


def assert_same_tables(stages: Sequence[Stage[Any]], expected: Sequence[Stage[Any]]) -> None:
    """Rows, and what was counted on the way, are those of the other run; the clock is not compared."""
    for stage, other in zip(stages, expected, strict=True):
        assert stage.output.path.name == other.output.path.name
        assert stage.output.rows() == other.output.rows(), stage.name
        manifest, expected_manifest = stage.output.manifest(), other.output.manifest()
        counts, expected_counts = manifest["counts"], expected_manifest["counts"]
        assert counts.pop("seconds") > 0
        assert expected_counts.pop("seconds") > 0
        assert counts == expected_counts
        assert manifest["num_shards"] == expected_manifest["num_shards"]


def half_written(tables: Path) -> list[Path]:
    """Return the tables without a manifest, and the files that were never moved to their names."""
    folders = [folder for folder in tables.glob("*/*") if not (folder / "manifest.json").is_file()]
    return [*folders, *tables.rglob(".*.tmp-*")]


def clean_environment() -> dict[str, str]:
    """This process's environment, without a Ray that it may be connected to."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or "USAGE" in name}


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder with a short name: Ray puts sockets in it, and their paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="tsq-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_with_descendants(pid: int) -> None:
    """Kill a process that was started here, and exactly those that descend from it."""
    family = descendants(pid)
    if psutil.pid_exists(pid) and os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)
    for process in still_alive(family, seconds=0):
        process.kill()


def still_alive(processes: Sequence[psutil.Process], *, seconds: float) -> list[psutil.Process]:
    """Return those that have not ended after so many seconds; one that nobody has buried yet has ended."""
    deadline = time.monotonic() + seconds
    while alive := [process for process in processes if _is_alive(process)]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
