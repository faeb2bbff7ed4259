"""Which checkpoints count, are kept and are gone back to, and when accuracy has collapsed."""

import errno
from pathlib import Path

import pytest

from tokensqueeze.config import SFT, TrainingSettings
from tokensqueeze.errors import TrainingError
from tokensqueeze.schema import Problem, ScoredPair
from tokensqueeze.tables import Table, write_json
from tokensqueeze.training import training_log
from tokensqueeze.training.checkpoints import (
    MARKER,
    Checkpoint,
    best_checkpoint,
    complete_checkpoints,
    go_back,
    newest_checkpoint,
    remove_incomplete,
    storage_failure,
    superseded,
)
from tokensqueeze.training.dev_accuracy import check_not_collapsed
from tokensqueeze.training.job import TrainingJob, job_name
from tokensqueeze.training.pairs import UsablePairs
from tokensqueeze.training.training_log import DevRow


def test_newest_complete_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    for step in (50, 100):
        _checkpoint(tmp_path, step, complete=True)
    _checkpoint(tmp_path, 150, complete=False)
    newest = newest_checkpoint(tmp_path, job_name="job")
    assert newest is not None
    assert (newest.step, newest.path.name) == (100, "step-000100")


def test_no_checkpoint_at_all_means_from_the_start(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 50, complete=False)
    assert newest_checkpoint(tmp_path, job_name="job") is None
    assert newest_checkpoint(tmp_path / "absent", job_name="job") is None


def test_checkpoint_of_other_settings_is_an_error(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 50, complete=True)
    with pytest.raises(TrainingError, match=r"step-000050: made with other settings.*\(job, now other\)"):
        newest_checkpoint(tmp_path, job_name="other")


def test_only_half_written_checkpoints_are_removed(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 50, complete=True)
    _checkpoint(tmp_path, 100, complete=False)
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000050"]


def test_best_checkpoint_has_the_highest_accuracy_then_the_shortest_completions_then_the_last_step() -> None:
    def best_of(*looks: tuple[float, float] | None) -> int | None:
        best = best_checkpoint([_measured(10 * number, look) for number, look in enumerate(looks, start=1)])
        return best.step if best else None

    assert best_of((0.5, 9.0), (0.75, 80.0), (0.25, 3.0)) == 20
    assert best_of((0.75, 60.0), (0.75, 50.0), (0.75, 70.0)) == 20
    assert best_of((0.75, 50.0), (0.75, 50.0), None) == 20
    assert best_of(None, None) is None
    assert best_of() is None


def test_last_two_and_the_best_checkpoint_are_kept() -> None:
    looks = [None, (0.75, 60.0), None, (0.5, 9.0), None, None]
    checkpoints = [_measured(10 * number, look) for number, look in enumerate(looks, start=1)]
    assert [checkpoint.step for checkpoint in superseded(checkpoints, keep=2)] == [10, 30, 40]
    assert [checkpoint.step for checkpoint in superseded(checkpoints, keep=5)] == [10]
    assert superseded(checkpoints, keep=6) == []


def test_best_checkpoint_among_the_last_is_not_kept_twice() -> None:
    checkpoints = [_measured(10, (0.5, 9.0)), _measured(20, (0.75, 9.0)), _measured(30, (0.5, 9.0))]
    assert [checkpoint.step for checkpoint in superseded(checkpoints, keep=2)] == [10]


def test_checkpoint_says_who_saved_it_and_what_dev_accuracy_was_then(tmp_path: Path) -> None:
    for step, more in ((10, {"num_workers": 4, "dev_accuracy": 0.75, "dev_length": 31.5}), (20, {"num_workers": 2})):
        _checkpoint(tmp_path, step, complete=True)
        write_json(tmp_path / f"step-{step:06d}" / MARKER, {"step": step, "job_name": "job"} | more)
    first, second = complete_checkpoints(tmp_path)
    assert (first.num_workers, first.dev) == (4, DevRow(10, 0.75, 31.5))
    assert (second.num_workers, second.dev) == (2, None)


def test_start_goes_back_to_the_newest_complete_checkpoint_in_folder_and_log(tmp_path: Path) -> None:
    job = _job(tmp_path)
    _checkpoint(job.checkpoints_dir, 2, complete=True)
    _checkpoint(job.checkpoints_dir, 3, complete=False)
    for row in (DevRow(0, 1.0, 4.0), DevRow(2, 0.5, 4.0), DevRow(3, 0.5, 4.0)):
        training_log.append(job.log_path, row)
    start = go_back(job)
    assert start is not None
    assert start.step == 2
    assert [path.name for path in job.checkpoints_dir.iterdir()] == ["step-000002"]
    assert [row.step for row in training_log.read(job.log_path)] == [0, 2]


def test_start_without_a_checkpoint_empties_the_log(tmp_path: Path) -> None:
    job = _job(tmp_path)
    training_log.append(job.log_path, DevRow(0, 1.0, 4.0))
    assert go_back(job) is None
    assert training_log.read(job.log_path) == []


def test_full_disk_is_told_from_other_failures_whoever_met_it() -> None:
    assert storage_failure(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert storage_failure(RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")) is not None
    assert storage_failure(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert storage_failure(RuntimeError("Connection closed by peer")) is None


def test_checkpoint_is_due_at_its_interval_at_the_end_and_wherever_the_best_could_be(tmp_path: Path) -> None:
    def due(**settings: object) -> list[int]:
        job = _job(tmp_path, checkpoint_every=4, dev_every=3, **settings)
        return [step for step in range(1, 11) if job.saves_after(step, steps=10)]

    assert due() == [4, 8, 10]
    assert due(export="best") == [3, 4, 6, 8, 9, 10]


def test_name_of_a_training_is_the_same_however_it_is_spread_saved_and_exported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def name(**settings: object) -> str:
        usable = UsablePairs(pairs=[], left_out={})
        job = _job(tmp_path, **settings)
        return job_name(settings=job.settings, objective=job.objective, model_dir=tmp_path, usable=usable)

    for same in (
        {"num_workers": 8},
        {"num_workers": 8, "min_workers": 2},
        {"micro_batch_tokens": 100},
        {"checkpoint_every": 3, "keep_checkpoints": 9, "max_failures": 0},
        {"export": "best"},
    ):
        assert name(**same) == name(), same
    for other in ({"learning_rate": 1e-3}, {"batch_size": 2}, {"zero_stage": 3}, {"dtype": "float32"}, {"dev_every": 7}):
        assert name(**other) != name(), other


def test_accuracy_may_fall_by_as_much_as_allowed_and_no_more() -> None:
    base = DevRow(0, 0.75, 80.0)
    check_not_collapsed(DevRow(50, 0.5, 20.0), base=base, max_drop=0.25)
    with pytest.raises(TrainingError, match=r"step 50: dev accuracy fell from 75\.0% to 49\.0%, more than .* = 0\.25"):
        check_not_collapsed(DevRow(50, 0.49, 20.0), base=base, max_drop=0.25)


def _checkpoint(folder: Path, step: int, *, complete: bool) -> None:
    path = folder / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "weights.pt").write_bytes(b"weights")
    if complete:
        write_json(path / MARKER, {"step": step, "job_name": "job"})


def _measured(step: int, look: tuple[float, float] | None) -> Checkpoint:
    return Checkpoint(Path(f"step-{step:06d}"), step, "job", 1, DevRow(step, *look) if look else None)


def _job(folder: Path, **settings: object) -> TrainingJob:
    return TrainingJob(
        pairs=Table(folder / "pairs", ScoredPair),
        settings=TrainingSettings.model_validate(settings),
        objective=SFT(),
        model_dir=folder,
        output_dir=folder,
        dev_problems=[Problem("p", "q", "1", "q", [1])],
        think_end="</think>",
        name="job",
    )
