"""Training on Ray: a two-layer model that knows eight answers by heart, DeepSpeed in CPU processes over gloo."""

import dataclasses
import math
import threading
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean

import psutil
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.ray_local.training_world import (
    Training,
    World,
    assert_same_curve,
    changed,
    make_world,
    newest_step,
    number,
    token_ids_of,
    without_measurements,
)
from tokensqueeze.config import DPO
from tokensqueeze.errors import TrainingError
from tokensqueeze.tables import write_json
from tokensqueeze.training.checkpoints import complete_checkpoints
from tokensqueeze.training.export import tensor_infos
from tokensqueeze.training.launch import TrainingOutcome
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
def uninterrupted(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, TrainingOutcome]:
    """A hundred steps in one go on one worker: what the others are held against."""
    training = Training(world, tmp_path_factory.mktemp("uninterrupted"), settings=changed(epochs=34))
    return training, training.run()


def test_training_raises_the_preference_margin(uninterrupted: tuple[Training, TrainingOutcome]) -> None:
    first, *_, last = uninterrupted[0].steps
    assert number(first.margin) == pytest.approx(0, abs=1e-4)
    assert number(last.margin) > 3
    assert last.preference_accuracy == 1


def test_first_step_is_the_reference(uninterrupted: tuple[Training, TrainingOutcome], world: World) -> None:
    first = uninterrupted[0].steps[0]
    assert first.chosen_logps == pytest.approx(first.ref_chosen_logps, abs=1e-4)
    assert number(first.rejected_logps) == pytest.approx(number(first.ref_rejected_logps), abs=1e-4)
    # −log σ(−log r) = log(1 + r), r the ratio of the lengths; which four pairs came first shows in their logps.
    ratios = {p.pair_id: number(p.rejected_num_tokens) / p.chosen_num_tokens for p in world.pairs}
    possible = [
        fmean(math.log(1 + ratios[pair.pair_id]) for pair in four)
        for four in combinations(world.pairs, 4)
        if fmean(pair.ref_chosen_logps for pair in four) == pytest.approx(first.ref_chosen_logps, abs=1e-9)
    ]
    assert number(first.dpo_loss) in [pytest.approx(value, abs=1e-4) for value in possible]


def test_log_has_every_step_once_and_the_outcome_adds_it_up(
    uninterrupted: tuple[Training, TrainingOutcome], world: World
) -> None:
    training, outcome = uninterrupted
    assert [row.step for row in training.steps] == list(range(1, 103))
    assert [row.step for row in dev_rows(outcome.log_path)] == [0, 20, 40, 60, 80, 100, 102]
    read = sum(len(p.prompt_token_ids) + len(p.chosen_token_ids) + len(p.rejected_token_ids or []) for p in world.pairs)
    assert (outcome.steps, outcome.num_pairs, outcome.num_left_out, outcome.tokens) == (102, 10, 0, 34 * read)
    assert outcome.base_dev_accuracy == 1.0


def test_progress_tells_every_step_in_order(uninterrupted: tuple[Training, TrainingOutcome]) -> None:
    training, outcome = uninterrupted
    assert [(p.step, p.steps) for p in training.seen] == [(step, 102) for step in range(1, 103)]
    assert [p.loss for p in training.seen] == [row.loss for row in training.steps]
    assert training.seen[0].dev_accuracy == outcome.base_dev_accuracy
    assert all(p.tokens_per_second > 0 for p in training.seen)


def test_last_two_checkpoints_are_kept(uninterrupted: tuple[Training, TrainingOutcome]) -> None:
    folder = uninterrupted[0].output_dir / "checkpoints"
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder)] == [100, 102]
    assert sorted(path.name for path in folder.iterdir()) == ["step-000100", "step-000102"]


def test_best_weights_are_kept_and_exported_and_the_last_ones_too_without_training_again(world: World, tmp_path: Path) -> None:
    # So large a rate that the accuracy goes down from the first steps on.
    settings = changed(
        learning_rate=0.01,
        epochs=6,
        checkpoint_every=50,
        dev_every=1,
        zero_stage=1,
        export="best",
        max_chosen_drop=1e9,
        max_rejected_drop=1e9,
    )
    training = Training(world, tmp_path, settings=settings, objective=DPO(beta=0.1))
    outcome = training.run()
    looks = [row for row in dev_rows(outcome.log_path) if row.step > 0]
    best = max(looks, key=lambda row: (row.dev_accuracy, -row.dev_length, row.step))
    assert best.dev_accuracy > looks[-1].dev_accuracy
    assert [c.step for c in complete_checkpoints(tmp_path / "checkpoints")] == sorted({best.step, 17, 18})
    assert outcome.dev_accuracy == best.dev_accuracy
    saved = _saved_weights(tmp_path, best.step)
    assert all(tensor.equal(saved[name]) for name, tensor in training.weights.items())

    training.settings = settings.model_copy(update={"export": "last"})
    training.seen.clear()
    outcome = training.run()
    assert training.seen == []
    assert outcome.dev_accuracy == looks[-1].dev_accuracy
    saved = _saved_weights(tmp_path, 18)
    assert all(tensor.equal(saved[name]) for name, tensor in training.weights.items())


def test_exported_model_is_the_base_with_other_weights(uninterrupted: tuple[Training, TrainingOutcome], world: World) -> None:
    training, outcome = uninterrupted
    assert tensor_infos(outcome.model_dir) == tensor_infos(world.base_dir)
    base = AutoModelForCausalLM.from_pretrained(world.base_dir, dtype=torch.float32).state_dict()
    assert all(not torch.equal(tensor, base[name]) for name, tensor in training.weights.items())
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (outcome.model_dir / name).read_bytes() == (world.base_dir / name).read_bytes()
    assert AutoTokenizer.from_pretrained(outcome.model_dir)("q3 so").input_ids == token_ids_of("q3 so")


def test_finished_training_is_not_done_again(uninterrupted: tuple[Training, TrainingOutcome]) -> None:
    training, outcome = uninterrupted
    started = time.monotonic()
    assert training.run() == outcome
    assert time.monotonic() - started < 2


def test_killed_training_goes_on_and_gives_the_same_log_and_weights(
    uninterrupted: tuple[Training, TrainingOutcome], world: World, tmp_path: Path
) -> None:
    training = Training(world, tmp_path, settings=changed(epochs=34, max_failures=0))
    killer = threading.Thread(target=_kill_worker_at_first_checkpoint, args=(tmp_path,))
    killer.start()
    with pytest.raises(TrainingError, match=r"worker 0 failed: .*go on from the newest checkpoint"):
        training.run()
    killer.join()
    assert not (tmp_path / "model").exists()
    done_before = newest_step(tmp_path)
    assert 5 <= done_before < 102

    training.seen.clear()
    training.run()
    assert training.seen[0].step == done_before + 1
    assert without_measurements(training.steps) == without_measurements(uninterrupted[0].steps)
    assert dev_rows(tmp_path / "training_log.jsonl") == dev_rows(uninterrupted[1].log_path)
    expected = uninterrupted[0].weights
    assert all(torch.equal(tensor, expected[name]) for name, tensor in training.weights.items())


def test_two_workers_with_their_parameters_cut_and_offloaded_train_as_one(
    uninterrupted: tuple[Training, TrainingOutcome], world: World, tmp_path: Path
) -> None:
    cut = {"zero_stage": 3, "offload": "optimizer_and_parameters", "micro_batch_tokens": 1}
    training = Training(world, tmp_path, settings=changed(num_workers=2, **cut))
    outcome = training.run()
    assert_same_curve(training.steps, uninterrupted[0].steps[:6], tolerance=1e-4)
    assert outcome.base_dev_accuracy == 1.0


def test_training_stops_when_dev_accuracy_collapses(world: World, tmp_path: Path) -> None:
    settings = changed(learning_rate=0.3, dev_every=2, checkpoint_every=1, max_dev_accuracy_drop=0.25)
    training = Training(world, tmp_path, settings=settings, objective=DPO(beta=0.1))
    with pytest.raises(
        TrainingError, match=r"step 2: dev accuracy fell from 100.0% to \d+.\d%.*smaller training.learning_rate"
    ):
        training.run()
    assert newest_step(tmp_path) == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("logps", [math.nan, -math.inf, None])
def test_missing_or_non_finite_reference_score_is_an_error_before_anything_starts(
    world: World, tmp_path: Path, logps: float | None
) -> None:
    pairs = [*world.pairs[:-1], dataclasses.replace(world.pairs[-1], ref_rejected_logps=logps)]
    with pytest.raises(TrainingError, match=rf"pair p1-9: ref_rejected_logps is {logps}"):
        Training(world, tmp_path, pairs=pairs).run()
    assert not (tmp_path / "training_log.jsonl").exists()


def test_other_settings_do_not_go_on_from_a_checkpoint(world: World, tmp_path: Path) -> None:
    marker = tmp_path / "checkpoints" / "step-000004" / "complete.json"
    write_json(marker, {"step": 4, "job_name": "of-other-settings"})
    with pytest.raises(TrainingError, match="made with other settings, pairs or base model"):
        Training(world, tmp_path).run()


def _saved_weights(output_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """Return what the checkpoint holds, read without DeepSpeed."""
    path = output_dir / "checkpoints" / f"step-{step:06d}" / "mp_rank_00_model_states.pt"
    return {name.removeprefix("model."): w for name, w in torch.load(path, weights_only=False)["module"].items()}


def _kill_worker_at_first_checkpoint(output_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if complete_checkpoints(output_dir / "checkpoints"):
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::RayTrain"):
                    process.kill()
            return
        time.sleep(0.005)
