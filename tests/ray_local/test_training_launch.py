"""Training on Ray: a two-layer model that knows eight answers by heart, DeepSpeed in CPU processes over gloo."""

import dataclasses
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Literal

import psutil
import pytest
import ray
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.config import DPO, SFT, DPOLengthSFT, ObjectiveSettings, TrainingSettings
from tokensqueeze.errors import TrainingError
from tokensqueeze.objectives.sequence_logps import completion_logps
from tokensqueeze.schema import Problem, ScoredPair
from tokensqueeze.tables import Table, write_json
from tokensqueeze.training.checkpoints import complete_checkpoints
from tokensqueeze.training.export import tensor_shapes
from tokensqueeze.training.launch import TrainingOutcome, TrainingProgress, train_model
from tokensqueeze.training.training_log import StepRow, dev_rows, step_rows

ANSWERS = range(8)
WORDS = ["so", "hence", "wait", "hmm", "then", "now"]
TOKENS = [
    "<pad>",
    "<eos>",
    "<think>",
    "</think>",
    *WORDS,
    *[f"q{i}" for i in ANSWERS],
    *[f"\\boxed{{{i}}}" for i in ANSWERS],
]
pytestmark = pytest.mark.slow

# A ZeRO-3 worker keeps tensors below 100,000 numbers whole: the embedding must be above it to be cut.
VOCABULARY, HIDDEN = 2048, 64

SETTINGS = TrainingSettings(
    learning_rate=1e-3,
    batch_size=4,
    micro_batch_size=2,
    epochs=2,
    warmup_ratio=0,
    schedule="constant",
    dtype="float32",
    zero_stage=0,
    checkpoint_every=5,
    dev_every=20,
    max_dev_accuracy_drop=1.0,
)
"""Ten pairs make three steps an epoch: of four, four and two pairs."""
OBJECTIVE = DPOLengthSFT(beta=0.5)


@dataclass(frozen=True)
class World:
    """A base model, ten pairs scored under it, and the problems it can answer."""

    base_dir: Path
    pairs: list[ScoredPair]
    problems: list[Problem]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    problems = [Problem(f"p{i}", f"q{i}", str(i), f"q{i} <think>", _ids(f"q{i} <think>")) for i in ANSWERS]
    model = _taught_model(problems)
    model.save_pretrained(folder)
    rng = random.Random(0)
    pairs = [_scored(model, _pair(rng, index, problems[index % len(problems)])) for index in range(10)]
    return World(folder, pairs, problems)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@dataclass
class Training:
    """One call of `train_model` and what it left behind."""

    world: World
    output_dir: Path
    settings: TrainingSettings = SETTINGS
    objective: ObjectiveSettings = OBJECTIVE
    pairs: Sequence[ScoredPair] | None = None
    seen: list[TrainingProgress] = field(default_factory=list)

    def run(self) -> TrainingOutcome:
        table = Table(self.output_dir / "pairs", ScoredPair)
        rows = self.world.pairs if self.pairs is None else self.pairs
        table.write_part(0, rows[:6], {})
        table.write_part(1, rows[6:], {})
        table.complete({"num_shards": 2})
        return train_model(
            pairs=table,
            settings=self.settings,
            objective=self.objective,
            model_dir=self.world.base_dir,
            output_dir=self.output_dir,
            dev_problems=self.world.problems,
            dev_max_tokens=12,
            think_end="</think>",
            progress=self.seen.append,
        )

    @property
    def steps(self) -> list[StepRow]:
        return step_rows(self.output_dir / "training_log.jsonl")

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return AutoModelForCausalLM.from_pretrained(self.output_dir / "model", dtype=torch.float32).state_dict()


@pytest.fixture(scope="module")
def uninterrupted(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, TrainingOutcome]:
    """A hundred steps in one go on one worker: what the others are held against."""
    training = Training(world, tmp_path_factory.mktemp("uninterrupted"), settings=_changed(epochs=34))
    return training, training.run()


def test_training_raises_the_preference_margin(uninterrupted: tuple[Training, TrainingOutcome]) -> None:
    first, *_, last = uninterrupted[0].steps
    assert _number(first.margin) == pytest.approx(0, abs=1e-4)
    assert _number(last.margin) > 3
    assert last.preference_accuracy == 1


def test_first_step_is_the_reference(uninterrupted: tuple[Training, TrainingOutcome], world: World) -> None:
    first = uninterrupted[0].steps[0]
    assert first.chosen_logps == pytest.approx(first.ref_chosen_logps, abs=1e-4)
    assert _number(first.rejected_logps) == pytest.approx(_number(first.ref_rejected_logps), abs=1e-4)
    # −log σ(−log r) = log(1 + r), r the ratio of the lengths; which four pairs came first shows in their logps.
    ratios = {p.pair_id: _number(p.rejected_num_tokens) / p.chosen_num_tokens for p in world.pairs}
    possible = [
        fmean(math.log(1 + ratios[pair.pair_id]) for pair in four)
        for four in combinations(world.pairs, 4)
        if fmean(pair.ref_chosen_logps for pair in four) == pytest.approx(first.ref_chosen_logps, abs=1e-9)
    ]
    assert _number(first.dpo_loss) in [pytest.approx(value, abs=1e-4) for value in possible]


def test_log_has_every_step_once_and_the_outcome_adds_it_up(
    uninterrupted: tuple[Training, TrainingOutcome], world: World
) -> None:
    training, outcome = uninterrupted
    assert [row.step for row in training.steps] == list(range(1, 103))
    assert [row.step for row in dev_rows(outcome.log_path)] == [0, 20, 40, 60, 80, 100, 102]
    read = sum(2 * len(p.prompt_token_ids) + len(p.chosen_token_ids) + len(p.rejected_token_ids or []) for p in world.pairs)
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


def test_exported_model_is_the_base_with_other_weights(uninterrupted: tuple[Training, TrainingOutcome], world: World) -> None:
    training, outcome = uninterrupted
    assert tensor_shapes(outcome.model_dir) == tensor_shapes(world.base_dir)
    base = AutoModelForCausalLM.from_pretrained(world.base_dir, dtype=torch.float32).state_dict()
    assert all(not torch.equal(tensor, base[name]) for name, tensor in training.weights.items())
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (outcome.model_dir / name).read_bytes() == (world.base_dir / name).read_bytes()
    assert AutoTokenizer.from_pretrained(outcome.model_dir)("q3 so").input_ids == _ids("q3 so")


def test_finished_training_is_not_done_again(uninterrupted: tuple[Training, TrainingOutcome]) -> None:
    training, outcome = uninterrupted
    started = time.monotonic()
    assert training.run() == outcome
    assert time.monotonic() - started < 2


def test_killed_training_goes_on_and_gives_the_same_log_and_weights(
    uninterrupted: tuple[Training, TrainingOutcome], world: World, tmp_path: Path
) -> None:
    training = Training(world, tmp_path, settings=uninterrupted[0].settings)
    killer = threading.Thread(target=_kill_worker_at_first_checkpoint, args=(tmp_path,))
    killer.start()
    with pytest.raises(TrainingError, match=r"worker 0 failed: .*go on from the newest checkpoint"):
        training.run()
    killer.join()
    assert not (tmp_path / "model").exists()
    done_before = _newest_step(tmp_path)
    assert 5 <= done_before < 102

    training.seen.clear()
    training.run()
    assert training.seen[0].step == done_before + 1
    assert _without_seconds(training.steps) == _without_seconds(uninterrupted[0].steps)
    assert dev_rows(tmp_path / "training_log.jsonl") == dev_rows(uninterrupted[1].log_path)
    expected = uninterrupted[0].weights
    assert all(torch.equal(tensor, expected[name]) for name, tensor in training.weights.items())


def test_zero_1_agrees_with_zero_0(uninterrupted: tuple[Training, TrainingOutcome], world: World, tmp_path: Path) -> None:
    training = Training(world, tmp_path, settings=_changed(zero_stage=1))
    training.run()
    _assert_same_curve(training.steps, uninterrupted[0].steps[:6])


def test_bfloat16_keeps_up_with_float32(uninterrupted: tuple[Training, TrainingOutcome], world: World, tmp_path: Path) -> None:
    # Micro-batches of one, so that gradients add up; without a float32 copy of the weights the second norm is 25 % off.
    training = Training(world, tmp_path, settings=_changed(dtype="bfloat16", micro_batch_size=1, epochs=1))
    training.run()
    _assert_same_curve(training.steps, uninterrupted[0].steps[:3], tolerance=0.05)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_workers_agree_with_one(
    uninterrupted: tuple[Training, TrainingOutcome], world: World, tmp_path: Path, zero_stage: Literal[2, 3]
) -> None:
    # Micro-batches of one: the last batch of an epoch, two pairs, is one each.
    training = Training(world, tmp_path, settings=_changed(zero_stage=zero_stage, num_workers=2, micro_batch_size=1))
    outcome = training.run()
    _assert_same_curve(training.steps, uninterrupted[0].steps[:6])
    assert tensor_shapes(outcome.model_dir) == tensor_shapes(world.base_dir)
    assert outcome.base_dev_accuracy == 1.0


def test_sft_in_bfloat16_raises_the_chosen_side_and_needs_no_rejected_one(world: World, tmp_path: Path) -> None:
    pairs = [dataclasses.replace(p, rejected=None, rejected_token_ids=None, ref_rejected_logps=None) for p in world.pairs]
    settings = _changed(dtype="bfloat16", zero_stage=2, learning_rate=3e-3)
    training = Training(world, tmp_path, settings=settings, objective=SFT(), pairs=pairs)
    training.run()
    first, *_, last = training.steps
    assert last.sft_loss < 0.7 * first.sft_loss
    assert tensor_shapes(tmp_path / "model") == tensor_shapes(world.base_dir)
    assert first.loss == first.sft_loss
    assert (first.dpo_loss, first.rejected_logps, first.margin, first.preference_accuracy) == (None,) * 4


def test_training_stops_when_dev_accuracy_collapses(world: World, tmp_path: Path) -> None:
    settings = _changed(learning_rate=0.3, dev_every=2, checkpoint_every=1, max_dev_accuracy_drop=0.25)
    training = Training(world, tmp_path, settings=settings, objective=DPO(beta=0.1))
    with pytest.raises(
        TrainingError, match=r"step 2: dev accuracy fell from 100.0% to \d+.\d%.*smaller training.learning_rate"
    ):
        training.run()
    assert _newest_step(tmp_path) == 1
    assert not (tmp_path / "model").exists()


def test_gradient_that_is_not_finite_stops_training_and_names_the_pairs(world: World, tmp_path: Path) -> None:
    message = r"step 2: the gradient's norm is nan on pairs p\d-\d, p\d-\d.* try a smaller training\.learning_rate"
    with pytest.raises(TrainingError, match=message):
        Training(world, tmp_path, settings=_changed(learning_rate=1e36)).run()
    assert [row.step for row in step_rows(tmp_path / "training_log.jsonl")] == [1]


def test_reference_scores_of_another_model_stop_training_at_the_first_step(world: World, tmp_path: Path) -> None:
    pairs = [dataclasses.replace(pair, ref_rejected_logps=_number(pair.ref_rejected_logps) / 2) for pair in world.pairs]
    with pytest.raises(TrainingError, match=r"step 1: ref_rejected_logps is .*another model's"):
        Training(world, tmp_path, pairs=pairs).run()
    assert complete_checkpoints(tmp_path / "checkpoints") == []


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


def _changed(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate(SETTINGS.model_dump() | changes)


def _kill_worker_at_first_checkpoint(output_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if complete_checkpoints(output_dir / "checkpoints"):
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::RayTrain"):
                    process.kill()
            return
        time.sleep(0.005)


def _newest_step(output_dir: Path) -> int:
    return complete_checkpoints(output_dir / "checkpoints")[-1].step


def _without_seconds(rows: Sequence[StepRow]) -> list[StepRow]:
    return [dataclasses.replace(row, seconds=0.0) for row in rows]


def _assert_same_curve(rows: Sequence[StepRow], expected: Sequence[StepRow], *, tolerance: float = 1e-3) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.loss == pytest.approx(other.loss, rel=tolerance)
        assert row.chosen_logps == pytest.approx(other.chosen_logps, rel=tolerance)
        assert row.rejected_logps == pytest.approx(other.rejected_logps, rel=tolerance)
        assert row.grad_norm == pytest.approx(other.grad_norm, rel=tolerance)
        assert (row.tokens, row.epoch) == (other.tokens, other.epoch)


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def _ids(text: str) -> list[int]:
    return [TOKENS.index(token) for token in text.split()]


def _taught_model(problems: Sequence[Problem]) -> Qwen3ForCausalLM:
    """Teach a small model to answer every problem right, after two words of thinking."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    texts = [f"{p.prompt} so then </think> \\boxed{{{p.gold_answer}}} <eos>" for p in problems]
    ids = torch.tensor([_ids(text) for text in texts])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def _pair(rng: random.Random, index: int, problem: Problem) -> ScoredPair:
    chosen = f"{rng.choice(WORDS)} </think> \\boxed{{{problem.gold_answer}}} <eos>"
    wrong = (int(problem.gold_answer) + 1) % len(ANSWERS)
    rejected = f"{' '.join(rng.choices(WORDS, k=rng.randint(3, 9)))} </think> \\boxed{{{wrong}}} <eos>"
    return ScoredPair(
        pair_id=f"{problem.problem_id}-{index}",
        problem_id=problem.problem_id,
        prompt=problem.prompt,
        chosen=chosen,
        rejected=rejected,
        prompt_token_ids=problem.prompt_token_ids,
        chosen_token_ids=_ids(chosen),
        rejected_token_ids=_ids(rejected),
        chosen_num_tokens=len(chosen.split()),
        rejected_num_tokens=len(rejected.split()),
        chosen_trace_id=f"{index}-chosen",
        rejected_trace_id=f"{index}-rejected",
        ref_chosen_logps=math.nan,
        ref_rejected_logps=math.nan,
    )


@torch.no_grad()
def _scored(model: Qwen3ForCausalLM, pair: ScoredPair) -> ScoredPair:
    def logps(completion: Sequence[int]) -> float:
        ids = [*pair.prompt_token_ids, *completion]
        return completion_logps(
            model,
            token_ids_BT=torch.tensor([ids]),
            prompt_lengths_B=torch.tensor([len(pair.prompt_token_ids)]),
            lengths_B=torch.tensor([len(ids)]),
        ).item()

    return dataclasses.replace(
        pair, ref_chosen_logps=logps(pair.chosen_token_ids), ref_rejected_logps=logps(pair.rejected_token_ids or [])
    )
