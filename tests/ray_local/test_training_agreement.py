"""However a training is cut up, offloaded, recomputed or split among workers, it is the same training."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ray_local import processes
from tests.ray_local.training_world import Training, World, assert_same_curve, changed, make_world, number
from tokensqueeze.config import SFT
from tokensqueeze.training.checkpoints import complete_checkpoints
from tokensqueeze.training.export import tensor_infos
from tokensqueeze.training.training_log import dev_rows

pytestmark = pytest.mark.slow

CUTS = {
    "zero 0": (0, "none", 0.0),
    "zero 1": (1, "none", 0.0),
    "zero 2": (2, "none", 0.0),
    "zero 2, offloaded": (2, "optimizer", 0.0),
    "zero 3": (3, "none", 0.0),
    # Some passes compute both layers again, some one, some none.
    "zero 3, offloaded, recomputing": (3, "optimizer_and_parameters", 1e-4),
}
"""ZeRO stage, offload and the GiB that activations may take, 0 for no recomputing."""


@dataclass(frozen=True)
class Done:
    """Trainings that the same processes have done, by name, and the errors they ended with."""

    trainings: Mapping[str, Training]
    errors: Mapping[str, str]

    def __getitem__(self, name: str) -> Training:
        assert self.errors[name] == ""
        return self.trainings[name]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """What one process has trained."""
    folder = tmp_path_factory.mktemp("alone")
    one_sided = [dataclasses.replace(p, rejected=None, rejected_token_ids=None, ref_rejected_logps=None) for p in world.pairs]
    other_scores = [dataclasses.replace(p, ref_rejected_logps=number(p.ref_rejected_logps) / 2) for p in world.pairs]
    return _train(
        folder,
        {
            "plain": Training(world, folder / "plain"),
            "zero 1": Training(world, folder / "zero 1", changed(zero_stage=1)),
            "recomputing": Training(world, folder / "recomputing", changed(gradient_checkpointing=True)),
            # Micro-batches of one, so that gradients add up; without a float32 copy of the weights the second norm is 25 % off.
            "bfloat16": Training(world, folder / "bfloat16", changed(dtype="bfloat16", micro_batch_tokens=1, epochs=1)),
            "one pair": Training(world, folder / "one pair", changed(zero_stage=3), pairs=world.pairs[:1]),
            "sft": Training(
                world,
                folder / "sft",
                changed(dtype="bfloat16", zero_stage=2, learning_rate=3e-3),
                SFT(),
                pairs=one_sided,
            ),
            "too fast": Training(world, folder / "too fast", changed(learning_rate=1e36)),
            "other scores": Training(world, folder / "other scores", pairs=other_scores),
        },
        num_workers=1,
    )


@pytest.fixture(scope="module")
def together(world: World, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """What two processes have trained with each other."""
    folder = tmp_path_factory.mktemp("together")
    trainings = {
        # One pair at a time: the last batch of an epoch, two pairs, is one each.
        name: Training(
            world,
            folder / name,
            changed(
                zero_stage=zero_stage,
                offload=offload,
                num_workers=2,
                micro_batch_tokens=1,
                gradient_checkpointing=activation_gib > 0,
                activation_gib=activation_gib,
            ),
        )
        for name, (zero_stage, offload, activation_gib) in CUTS.items()
    }
    trainings["one pair"] = Training(world, folder / "one pair", changed(zero_stage=3, num_workers=2), pairs=world.pairs[:1])
    return _train(folder, trainings, num_workers=2)


def test_zero_1_agrees_with_zero_0(alone: Done) -> None:
    assert_same_curve(alone["zero 1"].steps, alone["plain"].steps)


def test_recomputing_activations_changes_nothing(alone: Done) -> None:
    assert_same_curve(alone["recomputing"].steps, alone["plain"].steps)


def test_bfloat16_keeps_up_with_float32(alone: Done) -> None:
    assert_same_curve(alone["bfloat16"].steps, alone["plain"].steps[:3], tolerance=0.05)


@pytest.mark.parametrize("cut", CUTS)
def test_two_workers_agree_with_one(alone: Done, together: Done, world: World, cut: str) -> None:
    training = together[cut]
    assert len(training.steps) == 6
    assert_same_curve(training.steps, alone["plain"].steps, tolerance=1e-4)
    assert tensor_infos(training.output_dir / "model") == tensor_infos(world.base_dir)
    assert dev_rows(training.log_path)[0].dev_accuracy == 1.0


def test_fewer_pairs_than_workers_train_as_one_worker_trains_them(alone: Done, together: Done) -> None:
    assert [row.step for row in alone["one pair"].steps] == [1, 2]
    assert_same_curve(together["one pair"].steps, alone["one pair"].steps, tolerance=1e-4)


def test_sft_in_bfloat16_raises_the_chosen_side_and_needs_no_rejected_one(alone: Done, world: World) -> None:
    training = alone["sft"]
    first, *_, last = training.steps
    assert last.sft_loss < 0.7 * first.sft_loss
    assert tensor_infos(training.output_dir / "model") == tensor_infos(world.base_dir)
    assert first.loss == first.sft_loss
    assert (first.dpo_loss, first.rejected_logps, first.margin, first.preference_accuracy) == (None,) * 4


def test_gradient_that_is_not_finite_stops_training_and_names_the_pairs(alone: Done) -> None:
    message = (
        r"TrainingError: step 2: the gradient's norm is nan on pairs p\d-\d, p\d-\d.* try a smaller training\.learning_rate"
    )
    assert re.match(message, alone.errors["too fast"])
    assert [row.step for row in alone.trainings["too fast"].steps] == [1]


def test_reference_scores_of_another_model_stop_training_at_the_first_step(alone: Done) -> None:
    assert re.match(r"TrainingError: step 1: ref_rejected_logps is .*another model's", alone.errors["other scores"])
    assert complete_checkpoints(alone.trainings["other scores"].output_dir / "checkpoints") == []


def _train(folder: Path, trainings: Mapping[str, Training], *, num_workers: int) -> Done:
    return Done(trainings, processes.train(trainings, num_workers=num_workers, folder=folder))
