"""What kills a training, really done to it: each time it goes on, and ends as one that nothing happened to."""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

from tests.ray_local import processes
from tests.ray_local.training_world import (
    Training,
    World,
    assert_same_curve,
    changed,
    make_world,
    without_measurements,
)
from tokensqueeze.config import TrainingSettings
from tokensqueeze.errors import StorageError, TrainingError
from tokensqueeze.training.checkpoints import complete_checkpoints
from tokensqueeze.training.training_log import dev_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Ninety steps of two workers that no Ray looks after, three of them an epoch."""
    folder = tmp_path_factory.mktemp("undisturbed")
    training = Training(world, folder / "training", settings=_settings())
    assert processes.train({"undisturbed": training}, num_workers=2, folder=folder) == {"undisturbed": ""}
    return training


def test_killed_worker_is_replaced_and_the_training_ends_as_if_nothing_had_been(
    undisturbed: Training, world: World, tmp_path: Path
) -> None:
    # Checkpoints at the ends of epochs alone, so the kill is at the end of one or soon after the start of the next.
    training = Training(world, tmp_path, settings=_settings(checkpoint_every=15))

    def kill() -> None:
        first = _workers()
        os.kill(first[-1], signal.SIGKILL)
        _wait_until(lambda: len(set(_workers()) - set(first)) == 2)

    with _meanwhile(_at_first_checkpoint(tmp_path, kill)):
        training.run()
    assert [progress.step for progress in training.seen] == list(range(1, 91))
    _assert_as_undisturbed(training, undisturbed)


def test_worker_that_is_told_to_go_saves_a_checkpoint_and_nothing_is_lost(
    undisturbed: Training, world: World, tmp_path: Path
) -> None:
    # No other checkpoint before the last, and no failure allowed.
    training = Training(world, tmp_path, settings=_settings(checkpoint_every=1000, max_failures=0))

    def terminate() -> None:
        _wait_until(lambda: len(training.seen) >= 10)
        os.kill(_workers()[-1], signal.SIGTERM)

    with _meanwhile(terminate):
        training.run()
    assert [progress.step for progress in training.seen] == list(range(1, 91))
    _assert_as_undisturbed(training, undisturbed)
    saved, last = _saved_steps(tmp_path)
    assert 10 <= saved < last == 90


def test_disk_that_fills_up_during_a_save_costs_no_checkpoint_before(
    undisturbed: Training, world: World, tmp_path: Path
) -> None:
    training = Training(world, tmp_path, settings=_settings())
    # A file may have no more than this from now on, so no checkpoint can be written, but the log can.
    few_bytes = 300_000

    def fill() -> None:
        for pid in _workers():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (few_bytes, resource.RLIM_INFINITY))

    message = r"checkpoints/step-0000\d0: the checkpoint could not be written: .*the ones before are whole. Free some space"
    with _meanwhile(_at_first_checkpoint(tmp_path, fill)), pytest.raises(StorageError, match=message):
        training.run()
    before = _saved_steps(tmp_path)
    assert before[0] >= 10
    assert sorted(path.name for path in tmp_path.glob("checkpoints/step-*")) == [f"step-{step:06d}" for step in before]

    told = len(training.seen)
    training.run()
    # What was done after the last whole checkpoint is done, and told, again.
    assert [progress.step for progress in training.seen[told:]] == list(range(before[-1] + 1, 91))
    _assert_as_undisturbed(training, undisturbed)


@pytest.mark.parametrize(("zero_stage", "workers_before", "workers_after"), [(1, 1, 2), (3, 2, 1)])
def test_training_goes_on_with_another_number_of_workers(
    undisturbed: Training, world: World, tmp_path: Path, zero_stage: int, workers_before: int, workers_after: int
) -> None:
    settings = _settings(zero_stage=zero_stage, num_workers=workers_before, max_failures=0)
    training = Training(world, tmp_path, settings=settings)
    with (
        _meanwhile(_at_first_checkpoint(tmp_path, lambda: os.kill(_workers()[-1], signal.SIGKILL))),
        pytest.raises(TrainingError, match="go on from the newest checkpoint"),
    ):
        training.run()
    saved = _saved_steps(tmp_path)[-1]

    training.settings = settings.model_copy(update={"num_workers": workers_after})
    told = len(training.seen)
    training.run()
    assert training.seen[told].step == saved + 1
    assert_same_curve(training.steps, undisturbed.steps, tolerance=1e-4)
    assert _saved_steps(tmp_path) == [80, 90]


def test_training_goes_on_with_the_workers_that_are_left_when_a_node_is_lost(
    undisturbed: Training, world: World, tmp_path: Path
) -> None:
    training = Training(world, tmp_path, settings=_settings(zero_stage=2, min_workers=1))
    with _cluster_of_two_nodes() as nodes:
        with _meanwhile(_at_first_checkpoint(tmp_path, lambda: nodes.remove_node(nodes.list_all_nodes()[-1], False))):
            training.run()
        assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert_same_curve(training.steps, undisturbed.steps, tolerance=1e-4)
    assert complete_checkpoints(tmp_path / "checkpoints")[-1].num_workers == 1


def test_training_leaves_a_node_that_is_drained(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    settings = _settings(epochs=400, num_workers=1, checkpoint_every=10_000, dev_every=10_000, max_failures=0)
    training = Training(world, tmp_path, settings=settings)
    with _cluster_of_two_nodes() as nodes:
        of_workers: list[str] = []

        def drain() -> None:
            _wait_until(lambda: len(training.seen) >= 10)
            (worker,) = _workers()
            raylet = psutil.Process(worker).ppid()
            (node,) = [node for node in nodes.list_all_nodes() if node.all_processes["raylet"][0].process.pid == raylet]
            of_workers.append(node.node_id)
            in_a_minute = int(time.time() + 60) * 1000
            reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            GcsClient(address=nodes.address).drain_node(node.node_id, reason, "taken away", in_a_minute)
            _wait_until(lambda: _saved_steps(tmp_path) != [] and _workers() not in ([], [worker]))

        with _meanwhile(drain):
            training.run()
    saved, last = _saved_steps(tmp_path)
    assert 10 <= saved < last == 1200
    assert [row.step for row in training.steps] == [progress.step for progress in training.seen] == list(range(1, 1201))


def _settings(**changes: object) -> TrainingSettings:
    ours = {"epochs": 30, "zero_stage": 1, "num_workers": 2, "checkpoint_every": 10, "dev_every": 30}
    return changed(**ours | changes)


def _assert_as_undisturbed(training: Training, undisturbed: Training) -> None:
    assert without_measurements(training.steps) == without_measurements(undisturbed.steps)
    logs = [run.output_dir / "training_log.jsonl" for run in (training, undisturbed)]
    assert dev_rows(logs[0]) == dev_rows(logs[1])
    expected = undisturbed.weights
    assert all(tensor.equal(expected[name]) for name, tensor in training.weights.items())


@contextmanager
def _cluster_of_two_nodes() -> Iterator[Cluster]:
    """A head without CPUs, and two nodes of one; a node that is gone is noticed within seconds."""
    ray.shutdown()
    noticing = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": noticing})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@contextmanager
def _meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread of its own; what goes wrong there is raised at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(timeout=60)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def _at_first_checkpoint(output_dir: Path, act: Callable[[], object]) -> Callable[[], None]:
    def wait_and_act() -> None:
        _wait_until(lambda: _saved_steps(output_dir) != [])
        act()

    return wait_and_act


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _saved_steps(output_dir: Path) -> list[int]:
    """Return the steps of the complete checkpoints, by their names: they come and go meanwhile."""
    return sorted(
        int(marker.parent.name.removeprefix("step-")) for marker in output_dir.glob("checkpoints/step-*/complete.json")
    )


def _workers() -> list[int]:
    """Return the process ids of the training's workers."""
    found: list[int] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::RayTrain") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return sorted(found)
