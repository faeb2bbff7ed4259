"""Does training here give what TRL's `DPOTrainer` gives, step by step, and how fast and in how much memory?

    pip install 'tokensqueeze[bench]'
    python -m benchmarks.train_vs_trl [--model DIR] [--pairs FILE] [--work-dir DIR]

Both trainers get the same model, token ids, reference scores and order, and the same optimiser: AdamW without weight decay at
a constant learning rate, gradients clipped to a norm of 1, all in float32 on the CPU. Each runs in a process of its own.

Equality: the demo model, 20 steps on pairs of its own world, TRL's `sigmoid` loss against `dpo`, and its ½·`sigmoid` + ½·`sft`
against `dpo_length_sft` without a length margin. Differences of loss and gradient norm are relative, the largest of all steps.

Speed and memory: `--model`, or else the demo model; pairs whose lengths are those of real traces, the longest about 2,000
tokens, from a JSONL file of prompt, chosen and rejected texts or else strung together from the fixtures. Gradient
checkpointing is on for both, TRL's default; tokensqueeze keeps the activations that fit `--activation-gib`. TRL reads 1, 2 or
4 pairs in one pass, those of a step sorted by length, since its `padding_free` is switched off in this version; speed is held
against its fastest, memory against its leanest. Tokens are those of both sides with their prompts, without padding, whatever
a trainer makes of them. The first step is not timed. Peak memory is the process's resident memory, Python and its libraries
included, until the last step is done. tokensqueeze starts its CPU workers with settings for glibc's allocator
(`GLIBC_TUNABLES`); TRL runs as installed, and once more with the same settings.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.training_task import (
    LONGEST,
    Outcome,
    Step,
    Task,
    demo_pairs,
    file_pairs,
    fixture_pairs,
    padded_tokens,
    planned_batches,
    real_tokens,
)
from tokensqueeze.engines.checkpoint import context_length, demo_model_dir, load_model, model_dir
from tokensqueeze.objectives.reference_logps import reference_logps
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training.launch import GLIBC_TUNABLES

EQUAL_PAIRS_PER_STEP = 4
WARM_UP_STEPS = 1
BETA = 0.1
SAME_ALLOCATOR = "trl, told what tokensqueeze tells its workers"
EQUAL_LEARNING_RATE, TIMED_LEARNING_RATE = 1e-4, 5e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a Hugging Face model directory, for speed and memory")
    parser.add_argument("--pairs", type=Path, help="a JSONL file of prompt, chosen and rejected texts, for speed and memory")
    parser.add_argument("--equal-steps", type=int, default=20, help="steps over which losses are compared; 0 leaves them out")
    parser.add_argument("--steps", type=int, default=3, help="timed steps; 0 leaves speed and memory out")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--longest", type=int, default=LONGEST, help="tokens of the longest sequence; lengths scale with it")
    parser.add_argument("--trl-pairs-at-once", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--micro-batch-tokens", type=int, default=1, help="what tokensqueeze reads in one pass, or one pair")
    parser.add_argument("--activation-gib", type=float, default=0.75, help="tokensqueeze's training.activation_gib")
    parser.add_argument("--no-gradient-checkpointing", action="store_true", help="for either trainer")
    parser.add_argument("--repeats", type=int, default=1, help="times that every trainer runs, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work-dir", type=Path, help="kept; default: a folder that is removed at the end")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=140)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(arguments, arguments.work_dir or Path(temporary), console)
        result = {}
        if arguments.equal_steps:
            result |= bench.equality()
        if arguments.steps:
            result |= bench.speed_and_memory()
    print(json.dumps(result))


@dataclass(frozen=True)
class Bench:
    arguments: argparse.Namespace
    work_dir: Path
    console: Console

    def equality(self) -> dict[str, Any]:
        folder = demo_model_dir()
        pairs = demo_pairs(folder, num_pairs=self.arguments.equal_steps * EQUAL_PAIRS_PER_STEP)
        pairs_dir = self._write_pairs("equal", pairs, folder)
        table = RichTable("objective", "steps", "loss, first → last", "loss differs by", "gradient norm differs by")
        largest: dict[str, list[float]] = {"loss": [], "grad_norm": []}
        raw: dict[str, Any] = {}
        for with_sft in (False, True):
            task = self._task(
                folder,
                pairs_dir,
                pairs_per_step=EQUAL_PAIRS_PER_STEP,
                learning_rate=EQUAL_LEARNING_RATE,
                with_sft=with_sft,
            )
            ours = self._run(replace(task, trainer="tokensqueeze", at_once=self.arguments.micro_batch_tokens))
            # TRL's SFT term is a mean over one pass, so a pass must be the whole step.
            trl = self._run(replace(task, trainer="trl", at_once=EQUAL_PAIRS_PER_STEP))
            name = "dpo + sft" if with_sft else "dpo"
            differences = {figure: largest_difference(ours.steps, trl.steps, figure) for figure in largest}
            for figure, difference in differences.items():
                largest[figure].append(difference)
            raw[name] = {"tokensqueeze": _curve(ours), "trl": _curve(trl)}
            span = f"{ours.steps[0].loss:.4f} → {ours.steps[-1].loss:.4f}"
            table.add_row(name, str(len(ours.steps)), span, *(f"{value:.1e}" for value in differences.values()))
        self.console.print(table)
        return {
            "max_loss_difference": max(largest["loss"]),
            "max_grad_norm_difference": max(largest["grad_norm"]),
            "equality": raw,
        }

    def speed_and_memory(self) -> dict[str, Any]:
        arguments = self.arguments
        folder = model_dir(arguments.model)
        longest = min(arguments.longest, context_length(folder))
        num_pairs = (WARM_UP_STEPS + arguments.steps) * arguments.pairs_per_step
        if arguments.pairs:
            pairs = file_pairs(arguments.pairs, folder, num_pairs=num_pairs, longest=longest)
        else:
            pairs = fixture_pairs(folder, num_pairs=num_pairs, seed=0, longest=longest)
        task = self._task(
            folder,
            self._write_pairs("speed", pairs, folder),
            pairs_per_step=arguments.pairs_per_step,
            learning_rate=TIMED_LEARNING_RATE,
        )
        ours = replace(
            task,
            trainer="tokensqueeze",
            at_once=arguments.micro_batch_tokens,
            activation_gib=arguments.activation_gib,
            glibc_tunables=GLIBC_TUNABLES,
        )
        trl = {f"trl, {size} at once": replace(task, trainer="trl", at_once=size) for size in arguments.trl_pairs_at_once}
        leanest = f"trl, {min(arguments.trl_pairs_at_once)} at once"
        tasks = {"tokensqueeze": ours} | trl | {SAME_ALLOCATOR: replace(trl[leanest], glibc_tunables=GLIBC_TUNABLES)}
        outcomes: dict[str, list[Outcome]] = {name: [] for name in tasks}
        for _ in range(arguments.repeats):
            for name, one in tasks.items():
                outcomes[name].append(self._run(one))
                self.console.print(f"{name}: {_line(outcomes[name][-1])}")
        sides = {name: Side.of(runs) for name, runs in outcomes.items()}
        self.console.print(self._table(sides, tasks))
        planned = planned_batches(task)
        return {
            **ratios(sides["tokensqueeze"], [sides[name] for name in trl]),
            "peak_memory_ratio_same_allocator": ratios(sides["tokensqueeze"], [sides[SAME_ALLOCATOR]])["peak_memory_ratio"],
            "speed": {
                "model": folder.name,
                "real_tokens_per_step": [real_tokens(batch.pairs) for batch in planned],
                "longest_sequence": max(pair.longest for batch in planned for pair in batch.pairs),
                "max_loss_difference": max(
                    largest_difference(outcomes["tokensqueeze"][0].steps, outcomes[name][0].steps, "loss")
                    for name in tasks
                    if name != "tokensqueeze"
                ),
                "sides": {name: asdict(side) for name, side in sides.items()},
                "runs": {name: [asdict(outcome) for outcome in runs] for name, runs in outcomes.items()},
            },
        }

    def _task(
        self, folder: Path, pairs_dir: Path, *, pairs_per_step: int, learning_rate: float, with_sft: bool = False
    ) -> Task:
        return Task(
            trainer="tokensqueeze",
            model_dir=str(folder),
            pairs_dir=str(pairs_dir),
            output_dir="",
            with_sft=with_sft,
            beta=BETA,
            learning_rate=learning_rate,
            pairs_per_step=pairs_per_step,
            at_once=1,
            gradient_checkpointing=not self.arguments.no_gradient_checkpointing,
            threads=self.arguments.threads,
        )

    def _write_pairs(self, name: str, pairs: Sequence[ScoredPair], folder: Path) -> Path:
        """Score the pairs under the model itself, and write them as a table."""
        self.console.print(f"scoring {len(pairs)} pairs under {folder.name} …")
        sequences = [
            (pair.prompt_token_ids, side)
            for pair in pairs
            for side in (pair.chosen_token_ids, pair.rejected_token_ids)
            if side is not None
        ]
        logps = reference_logps(load_model(folder, torch.float32), sequences)
        scored = [
            replace(pair, ref_chosen_logps=chosen, ref_rejected_logps=rejected)
            for pair, chosen, rejected in zip(pairs, logps[::2], logps[1::2], strict=True)
        ]
        table = Table(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_made(self.work_dir))), ScoredPair)
        table.write_part(0, scored, {})
        table.complete({"num_shards": 1})
        return table.path

    def _run(self, task: Task) -> Outcome:
        """Let a fresh process do the task."""
        folder = Path(tempfile.mkdtemp(prefix=f"{task.trainer}-", dir=_made(self.work_dir)))
        (folder / "task.json").write_text(json.dumps(asdict(replace(task, output_dir=str(folder / "output")))))
        command = [sys.executable, "-m", "benchmarks.training_sides", str(folder / "task.json"), str(folder / "outcome.json")]
        with (folder / "log.txt").open("w") as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(task.threads), "GLIBC_TUNABLES": task.glibc_tunables}
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'log.txt').read_text()[-4000:]}")
        values = json.loads((folder / "outcome.json").read_text())
        return Outcome(**values | {"steps": [Step(**step) for step in values["steps"]]})

    def _table(self, sides: Mapping[str, "Side"], tasks: Mapping[str, Task]) -> RichTable:
        table = RichTable("trainer")
        for header in ("tokens/s", "peak GiB", "of it imports", "positions computed per real token"):
            table.add_column(header, justify="right")
        for name, side in sides.items():
            batches = planned_batches(tasks[name])
            real = sum(real_tokens(batch.pairs) for batch in batches)
            read = sum(
                padded_tokens(batch.pairs, at_once=tasks[name].at_once) if tasks[name].trainer == "trl" else batch.num_tokens
                for batch in batches
            )
            figures = (f"{side.tokens_per_second:.1f}", f"{side.peak_bytes / 2**30:.2f}", f"{side.imported_bytes / 2**30:.2f}")
            table.add_row(name, *figures, f"{read / real:.2f}")
        return table


@dataclass(frozen=True)
class Side:
    """A trainer's figures over its runs: the median speed, the largest memory."""

    tokens_per_second: float
    peak_bytes: int
    imported_bytes: int

    @classmethod
    def of(cls, runs: Sequence[Outcome]) -> "Side":
        return cls(
            statistics.median(run.tokens_per_second(warm_up_steps=WARM_UP_STEPS) for run in runs),
            max(run.peak_bytes for run in runs),
            max(run.imported_bytes for run in runs),
        )


def ratios(ours: Side, others: Sequence[Side]) -> dict[str, float]:
    """Hold our speed against the fastest of the others, and our memory against the leanest."""
    fastest = max(side.tokens_per_second for side in others)
    leanest = min(side.peak_bytes for side in others)
    return {
        "tokens_per_second_ratio": round(ours.tokens_per_second / fastest, 3),
        "peak_memory_ratio": round(ours.peak_bytes / leanest, 3),
    }


def largest_difference(ours: Sequence[Step], theirs: Sequence[Step], figure: str) -> float:
    """Return by how much a figure differs at most at any step, relative to theirs."""
    return max(
        abs(getattr(own, figure) - getattr(other, figure)) / abs(getattr(other, figure))
        for own, other in zip(ours, theirs, strict=True)
    )


def _curve(outcome: Outcome) -> dict[str, list[float]]:
    return {
        "loss": [round(step.loss, 6) for step in outcome.steps],
        "grad_norm": [round(step.grad_norm, 5) for step in outcome.steps],
    }


def _line(outcome: Outcome) -> str:
    speed = outcome.tokens_per_second(warm_up_steps=WARM_UP_STEPS)
    return f"{speed:.1f} tokens/s, peak {outcome.peak_bytes / 2**30:.2f} GiB"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
