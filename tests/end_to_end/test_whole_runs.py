"""Whole runs, killed at any moment, or as a job of many workers: all leave what one command leaves in one go."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.job_cluster import Cluster, cluster, make_checkout
from tests.end_to_end.small_run import (
    SECONDS,
    SMALL,
    SmallRun,
    assert_same_tables,
    descendants,
    evaluation_stages,
    half_written,
    kill_with_descendants,
    stages_to_scored_pairs,
    still_alive,
    temporary_folder,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WORKER_BUSY, PART_DONE = ".attempts-*", "part-*"
AT_WORK = {
    "traces": PART_DONE,
    "verified_traces": WORKER_BUSY,
    "selected_traces": "",  # So quick that its folder alone must do.
    "step_candidates": WORKER_BUSY,
    "refined_traces": WORKER_BUSY,
    "preference_pairs": "",
    "scored_pairs": WORKER_BUSY,
    "model": "checkpoints/*/complete.json",
    "evaluation_base": PART_DONE,
    "evaluation_squeezed": PART_DONE,
}
"""What is seen in a stage's folder when the stage is at work."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A command's whole run on one worker, killed once in every stage. Tests read it and leave it as it is."""
    run = SmallRun(tmp_path_factory.mktemp("killed") / "run")
    plan = run.plan
    folders = {stage.name: stage.output.path for stage in (*stages_to_scored_pairs(plan), *evaluation_stages(plan))}
    folders["model"] = plan.training_dir
    for name, sign in AT_WORK.items():
        _kill_at_work(run, folders[name], sign)
    run.succeed()
    return run


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    with cluster(num_cpus=4) as started:
        yield started


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def job(head: Cluster, checkout: Path) -> SmallRun:
    """A job's whole run on four workers, which nothing happens to."""
    workers = ("resources.workers=4", "resources.evaluate.workers=1")
    done = head.submit(checkout, "small.toml", *[part for override in (*SMALL, *workers) for part in ("--set", override)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[10/10] evaluation_squeezed: starting" in done.stdout
    return SmallRun(Path(head.environment["HOME"]) / "tokensqueeze" / "runs" / "small")


def test_a_run_killed_once_in_every_stage_leaves_what_an_undisturbed_one_leaves(killed: SmallRun, job: SmallRun) -> None:
    plan, expected = killed.plan, job.plan
    assert_same_tables(stages_to_scored_pairs(plan), stages_to_scored_pairs(expected))
    assert_same_tables(evaluation_stages(plan), evaluation_stages(expected))
    assert plan.score.output.rows()
    assert killed.training_log == job.training_log
    weights, expected_weights = (each.output / "model" / "model.safetensors" for each in (killed, job))
    assert weights.read_bytes() == expected_weights.read_bytes()
    assert killed.evaluation == job.evaluation
    assert half_written(killed.output / "tables") == []
    assert (killed.output / "report.html").is_file()


def test_four_workers_make_the_tables_that_one_makes(killed: SmallRun, job: SmallRun) -> None:
    four, one = stages_to_scored_pairs(job.plan), stages_to_scored_pairs(killed.plan)
    assert [stage.output.manifest()["workers"] for stage in four] == [4] * 7
    assert [stage.output.manifest()["workers"] for stage in one] == [1] * 7
    assert_same_tables(four, one)


def test_a_job_leaves_a_whole_run_outside_of_its_working_dir(job: SmallRun) -> None:
    assert {path.name for path in job.output.iterdir()} >= {"report.html", "evaluation.json", "run.json", "model", "tables"}
    assert (job.output / "model" / "model.safetensors").stat().st_size > 10**6
    assert json.loads((job.output / "run.json").read_text())["settings"]["sampling"]["num_samples"] == 6


def test_a_job_with_a_mistake_fails_with_its_line_in_the_log(head: Cluster, checkout: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = head.submit(checkout, "small.toml", "--output", str(output), "--set", "sampling.temprature=1")
    assert done.returncode != 0
    log = done.stdout + done.stderr
    assert "tokensqueeze: the settings have 1 mistake:\n" in log
    assert "sampling.temprature: unknown setting; did you mean temperature?" in log
    assert "Traceback" not in log
    assert not output.exists()


def test_a_rerun_of_a_finished_run_makes_nothing_again(killed: SmallRun) -> None:
    before = _times(killed.output / "tables")
    told = killed.succeed()
    assert _times(killed.output / "tables") == before
    assert told.count("done before") == len(AT_WORK)


def test_another_selector_leaves_the_traces_and_their_verdicts_alone(killed: SmallRun, tmp_path: Path) -> None:
    store = killed.output / "tables"
    before = _times(store)
    selector = 'selector={name="fixed_quantile", quantile=1.0}'
    other = SmallRun(tmp_path, (*SMALL, selector), ("--store", str(store), "--until", "select"))
    told = other.succeed()
    assert told.count("done before") == 2
    new = {path: times for path, times in _times(store).items() if path not in before}
    assert _times(store) == before | new
    assert {path.relative_to(store).parts[0] for path in new} == {"selected_traces"}


def test_another_selector_changes_the_fingerprints_of_what_comes_behind_it() -> None:
    plans = [SmallRun(Path("run"), (*SMALL, *more)).plan for more in ((), ('selector={name="fixed_quantile"}',))]
    one, other = ([*stages_to_scored_pairs(plan), *evaluation_stages(plan)] for plan in plans)
    same = {a.name for a, b in zip(one, other, strict=True) if a.output.path == b.output.path}
    assert same == {"traces", "verified_traces", "evaluation_base"}
    assert plans[0].training_dir != plans[1].training_dir


def _kill_at_work(run: SmallRun, folder: Path, sign: str) -> None:
    """Start the run, kill it and its Ray at the moment when the stage of this folder works, and see that all are dead."""
    with temporary_folder() as temporary, run.start(temporary) as process:
        try:
            _wait_for(folder, sign, process.poll)
            # Stopped first, so that the stage does not end while its family is looked up.
            os.kill(process.pid, signal.SIGSTOP)
            family = descendants(process.pid)
            assert not (folder / "manifest.json").exists(), f"{folder.parent.name} was over too quickly to be killed"
            assert any("raylet" in each.name() for each in family)
            os.killpg(process.pid, signal.SIGKILL)
            assert still_alive(family, seconds=30) == []
        finally:
            kill_with_descendants(process.pid)


def _wait_for(folder: Path, sign: str, poll: Callable[[], int | None]) -> None:
    deadline = time.monotonic() + SECONDS
    while not (any(folder.glob(sign)) if sign else folder.is_dir()):
        assert time.monotonic() < deadline, f"{folder.parent.name} has not begun"
        assert poll() is None, f"the run ended before {folder.parent.name}"
        time.sleep(0.002)


def _times(tables: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in tables.rglob("*") if path.is_file()}
