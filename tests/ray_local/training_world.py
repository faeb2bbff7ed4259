"""A training small enough to be killed often: a two-layer model that knows eight answers by heart, and ten pairs."""

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.ray_local.word_tokenizer import word_tokenizer
from tokensqueeze.config import DPOLengthSFT, ObjectiveSettings, TrainingSettings
from tokensqueeze.objectives.packing import pack
from tokensqueeze.objectives.sequence_logps import completion_logps
from tokensqueeze.schema import Problem, ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training.checkpoints import complete_checkpoints
from tokensqueeze.training.launch import TrainingOutcome, TrainingProgress, train_model
from tokensqueeze.training.training_log import StepRow, step_rows

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
# A ZeRO-3 worker keeps tensors below 100,000 numbers whole: the embedding must be above it to be cut.
VOCABULARY, HIDDEN = 2048, 64

SETTINGS = TrainingSettings(
    learning_rate=1e-3,
    batch_size=4,
    micro_batch_tokens=40,
    gradient_checkpointing=False,
    epochs=2,
    warmup_ratio=0,
    schedule="constant",
    dtype="float32",
    zero_stage=0,
    checkpoint_every=5,
    dev_every=20,
    dev_max_tokens=12,
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


def make_world(folder: Path) -> World:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = word_tokenizer(TOKENS)
    tokenizer.save_pretrained(folder)
    problems = [Problem(f"p{i}", f"q{i}", str(i), f"q{i} <think>", token_ids_of(f"q{i} <think>")) for i in ANSWERS]
    model = _taught_model(problems)
    model.save_pretrained(folder)
    rng = random.Random(0)
    pairs = [_scored(model, _pair(rng, index, problems[index % len(problems)])) for index in range(10)]
    return World(folder, pairs, problems)


@dataclass
class Training:
    """A training and what it left behind: one call of `train_model`, or without Ray what `processes.train` does."""

    world: World
    output_dir: Path
    settings: TrainingSettings = SETTINGS
    objective: ObjectiveSettings = OBJECTIVE
    pairs: Sequence[ScoredPair] | None = None
    seen: list[TrainingProgress] = field(default_factory=list)

    def run(self) -> TrainingOutcome:
        return train_model(
            pairs=self.table(),
            settings=self.settings,
            objective=self.objective,
            model_dir=self.world.base_dir,
            output_dir=self.output_dir,
            dev_problems=self.world.problems,
            think_end="</think>",
            progress=self.seen.append,
        )

    def table(self) -> Table[ScoredPair]:
        """Write the pairs, in two shards."""
        table = Table(self.output_dir / "pairs", ScoredPair)
        rows = self.world.pairs if self.pairs is None else self.pairs
        table.write_part(0, rows[:6], {})
        table.write_part(1, rows[6:], {})
        table.complete({"num_shards": 2})
        return table

    @property
    def log_path(self) -> Path:
        return self.output_dir / "training_log.jsonl"

    @property
    def steps(self) -> list[StepRow]:
        return step_rows(self.log_path)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return AutoModelForCausalLM.from_pretrained(self.output_dir / "model", dtype=torch.float32).state_dict()


def changed(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate(SETTINGS.model_dump() | changes)


def newest_step(output_dir: Path) -> int:
    return complete_checkpoints(output_dir / "checkpoints")[-1].step


def without_measurements(rows: Sequence[StepRow]) -> list[StepRow]:
    return [dataclasses.replace(row, seconds=0.0, max_memory_bytes=0) for row in rows]


def assert_same_curve(rows: Sequence[StepRow], expected: Sequence[StepRow], *, tolerance: float = 1e-3) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.loss == pytest.approx(other.loss, rel=tolerance)
        assert row.chosen_logps == pytest.approx(other.chosen_logps, rel=tolerance)
        assert row.rejected_logps == pytest.approx(other.rejected_logps, rel=tolerance)
        assert row.grad_norm == pytest.approx(other.grad_norm, rel=tolerance)
        assert (row.tokens, row.epoch) == (other.tokens, other.epoch)


def number(value: float | None) -> float:
    assert value is not None
    return value


def token_ids_of(text: str) -> list[int]:
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
    ids = torch.tensor([token_ids_of(text) for text in texts])
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
        chosen_token_ids=token_ids_of(chosen),
        rejected_token_ids=token_ids_of(rejected),
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
        return completion_logps(model, pack([(pair.prompt_token_ids, [completion])])).item()

    return dataclasses.replace(
        pair, ref_chosen_logps=logps(pair.chosen_token_ids), ref_rejected_logps=logps(pair.rejected_token_ids or [])
    )
