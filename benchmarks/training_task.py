"""What two trainers are asked to do alike: the same model, pairs, order and optimiser; and what is noted while they do it."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tokensqueeze.demo import world
from tokensqueeze.engines.checkpoint import load_tokenizer
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training.batches import Batch, batches
from tokensqueeze.training.pairs import EncodedPair, usable_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 2048
"""Tokens of the longest sequence, where the model's context has room for it."""
REJECTED_LENGTHS = ((0.0, 160), (0.1, 238), (0.25, 309), (0.5, 424), (0.75, 611), (0.9, 1029), (0.95, 2000), (1.0, 2000))
"""Quantiles, in tokens, of what a 3B model answers wrongly to competition problems, cut at 2,000."""
CHOSEN_SHARES = (0.3, 0.8)
"""A chosen side's least and greatest length as a share of the rejected one's; uniform between them."""
_FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


@dataclass(frozen=True)
class Task:
    """One training, for either trainer in a process of its own."""

    trainer: Literal["tokensqueeze", "trl"]
    model_dir: str
    pairs_dir: str
    """A table of scored pairs; every pair is read once."""
    output_dir: str
    with_sft: bool
    """½·DPO + ½·SFT in place of DPO alone."""
    beta: float
    learning_rate: float
    """Constant and without warm-up; AdamW without weight decay; gradients clipped to a norm of 1."""
    pairs_per_step: int
    at_once: int
    """What one forward pass reads: pairs for TRL, tokens for tokensqueeze."""
    gradient_checkpointing: bool
    threads: int
    activation_gib: float = 0
    """tokensqueeze's `training.activation_gib`."""
    glibc_tunables: str = ""
    """What the process is told of memory; tokensqueeze tells its CPU workers something."""


@dataclass(frozen=True)
class Step:
    loss: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Of both sides with their prompts, without padding."""
    seconds: float


@dataclass(frozen=True)
class Outcome:
    steps: list[Step]
    imported_bytes: int
    """Peak of the process's resident memory before the model is loaded."""
    peak_bytes: int
    """The same until the last step is done."""

    def tokens_per_second(self, *, warm_up_steps: int) -> float:
        counted = self.steps[warm_up_steps:]
        return sum(step.tokens for step in counted) / sum(step.seconds for step in counted)


def planned_batches(task: Task) -> list[Batch]:
    """Return what every optimiser step reads, as tokensqueeze plans it; within a step by length, so that TRL pads less."""
    table = Table(Path(task.pairs_dir), ScoredPair)
    usable = usable_pairs(table, max_length=LONGEST, needs_rejected=True)
    planned = batches(usable.pairs, batch_size=task.pairs_per_step, epochs=1, seed=0)
    return [replace(batch, pairs=sorted(batch.pairs, key=lambda pair: pair.longest)) for batch in planned]


def real_tokens(pairs: Sequence[EncodedPair]) -> int:
    """Return the tokens of both sides, each with its prompt, without padding."""
    return sum(len(pair.prompt_token_ids) + len(side.token_ids) for pair in pairs for side in pair.sides)


def padded_tokens(pairs: Sequence[EncodedPair], *, at_once: int) -> int:
    """Return the positions that TRL computes where it reads so many pairs in one pass: all rows as long as the longest."""
    passes = [pairs[first : first + at_once] for first in range(0, len(pairs), at_once)]
    return sum(2 * len(one) * max(pair.longest for pair in one) for one in passes)


def demo_pairs(model_dir: Path, *, num_pairs: int) -> list[ScoredPair]:
    """Return pairs of the demo's world: bare gold traces against verbose ones; reference scores are 0."""
    tokenizer = load_tokenizer(model_dir)
    rng = random.Random(0)
    pairs = []
    for number, problem in enumerate(world.problems("train", 2 * num_pairs, seed=0)):
        message = [{"role": "user", "content": problem.question}]
        prompt = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
        traces = [world.gold_trace(problem, "mixed"), world.verbose_trace(rng, problem)]
        chosen, rejected = (_ids(tokenizer, world.completion(trace, problem.answer)) for trace in traces)
        # A verbose trace may happen to be the bare one.
        if chosen != rejected and len(pairs) < num_pairs:
            pairs.append(_pair(tokenizer, number, _ids(tokenizer, prompt), chosen, rejected))
    return pairs


def fixture_pairs(model_dir: Path, *, num_pairs: int, seed: int, longest: int) -> list[ScoredPair]:
    """String the fixtures' sentences together to pairs of drawn lengths, up to `longest` tokens; reference scores are 0."""
    tokenizer = load_tokenizer(model_dir)
    rng = random.Random(seed)
    questions, sentences = _texts()
    # One long text, cut into all the sides: tokenised once, and no side begins like another.
    lengths = [[round(length * longest / LONGEST) for length in pair] for pair in pair_lengths(num_pairs, seed=seed)]
    stream = chain.from_iterable(_ids(tokenizer, " " + rng.choice(sentences)) for _ in iter(int, 1))
    pairs = []
    for index, pair in enumerate(lengths):
        prompt = _ids(tokenizer, questions[index % len(questions)])[: longest // 4]
        chosen, rejected = (list(islice(stream, max(1, min(length, longest - len(prompt))))) for length in pair)
        pairs.append(_pair(tokenizer, index, prompt, chosen, rejected))
    return pairs


def pair_lengths(num_pairs: int, *, seed: int) -> list[tuple[int, int]]:
    """Return the chosen and the rejected side's tokens of each pair; the rejected ones are spread evenly over the quantiles."""
    rng = random.Random(seed)
    shares, tokens = zip(*REJECTED_LENGTHS, strict=True)
    rejected = [round(float(np.interp((index + 0.5) / num_pairs, shares, tokens))) for index in range(num_pairs)]
    rng.shuffle(rejected)
    return [(round(length * rng.uniform(*CHOSEN_SHARES)), length) for length in rejected]


def file_pairs(path: Path, model_dir: Path, *, num_pairs: int, longest: int) -> list[ScoredPair]:
    """Read the first pairs, none longer than `longest` tokens, of a JSONL file of prompt, chosen and rejected texts."""
    tokenizer = load_tokenizer(model_dir)
    pairs: list[ScoredPair] = []
    for number, line in enumerate(path.read_text().splitlines()):
        row = json.loads(line)
        prompt, chosen, rejected = (_ids(tokenizer, row[name]) for name in ("prompt", "chosen", "rejected"))
        if len(prompt) + max(len(chosen), len(rejected)) <= longest:
            pairs.append(_pair(tokenizer, number, prompt, chosen, rejected))
        if len(pairs) == num_pairs:
            return pairs
    raise SystemExit(f"{path}: has {len(pairs)} pairs of at most {longest} tokens, {num_pairs} are needed; ask for fewer steps")


def _texts() -> tuple[list[str], list[str]]:
    """Return the fixtures' questions, and the sentences of their solutions."""
    rows = [json.loads(line) for name in ("gsm8k", "math") for line in (_FIXTURES / f"{name}.jsonl").read_text().splitlines()]
    questions = [row.get("question") or row["problem"] for row in rows]
    solutions = [row.get("answer") or row["solution"] for row in rows]
    sentences = [part.strip() for text in solutions for part in re.split(r"(?<=[.,])\s+|\n", text)]
    return questions, [sentence for sentence in sentences if sentence]


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]


def _pair(
    tokenizer: "PreTrainedTokenizerBase", number: int, prompt: list[int], chosen: list[int], rejected: list[int]
) -> ScoredPair:
    return ScoredPair(
        pair_id=f"pair-{number:04d}",
        problem_id=f"problem-{number:04d}",
        prompt=str(tokenizer.decode(prompt)),
        chosen=str(tokenizer.decode(chosen)),
        rejected=str(tokenizer.decode(rejected)),
        prompt_token_ids=prompt,
        chosen_token_ids=chosen,
        rejected_token_ids=rejected,
        chosen_num_tokens=len(chosen),
        rejected_num_tokens=len(rejected),
        chosen_trace_id=f"chosen-{number:04d}",
        rejected_trace_id=f"rejected-{number:04d}",
        ref_chosen_logps=0.0,
        ref_rejected_logps=0.0,
    )
