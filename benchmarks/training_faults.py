"""What does the death of a worker cost a training, in steps done again and in seconds?

    python -m benchmarks.training_faults [--model DIR] [--workers 2] [--steps 120] [--checkpoint-every 20] [--kills 2]

The same training twice in one run: undisturbed, and with a worker killed (SIGKILL) halfway between two checkpoints, as
often as asked. Seconds lost to a kill are those from the kill until a step is done that had not been done before, less one
undisturbed step: noticing it, ending the other workers, starting all of them, loading the checkpoint, and the steps since.
`restart_seconds_lost` is that without the steps done again, at their undisturbed pace. `same_log` and `same_weights` say
whether both runs ended alike.

Pairs are the demo's: bare gold traces against verbose ones, scored under the model itself.
"""

import argparse
import dataclasses
import json
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
import torch
from rich.console import Console
from rich.table import Table as RichTable
from safetensors.torch import load_file

from benchmarks.training_task import demo_pairs
from tokensqueeze.config import DPOLengthSFT, TrainingSettings
from tokensqueeze.engines.checkpoint import demo_model_dir, load_model
from tokensqueeze.objectives.reference_logps import reference_logps
from tokensqueeze.ray_token import private_ray_token
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training.launch import TrainingProgress, train_model
from tokensqueeze.training.training_log import StepRow, step_rows

PAIRS_PER_STEP = 16


@dataclass
class Run:
    """One training, and when each of its steps was done for the first time."""

    folder: Path
    model_dir: Path
    settings: TrainingSettings
    seconds: float = 0.0
    done: dict[int, float] = field(default_factory=dict)
    """By the step, on the monotonic clock."""

    def train(self, pairs: Sequence[ScoredPair]) -> None:
        table = Table(self.folder / "pairs", ScoredPair)
        table.write_part(0, pairs, {})
        table.complete({"num_shards": 1})
        started = time.monotonic()
        train_model(
            pairs=table,
            settings=self.settings,
            objective=DPOLengthSFT(),
            model_dir=self.model_dir,
            output_dir=self.folder,
            dev_problems=[],
            think_end="</think>",
            progress=self._note,
        )
        self.seconds = time.monotonic() - started

    def rows(self) -> list[StepRow]:
        """Return the log without what it measured."""
        rows = step_rows(self.folder / "training_log.jsonl")
        return [dataclasses.replace(row, seconds=0.0, max_memory_bytes=0) for row in rows]

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            name: tensor
            for path in sorted((self.folder / "model").glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }

    def step_seconds(self) -> float:
        return statistics.median(row.seconds for row in step_rows(self.folder / "training_log.jsonl"))

    def _note(self, progress: TrainingProgress) -> None:
        self.done.setdefault(progress.step, time.monotonic())


@dataclass(frozen=True)
class Kill:
    step: int
    """The last that was logged before it."""
    steps_lost: int
    """Done again: those since the newest checkpoint."""
    seconds_lost: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo_model_dir(), help="default: the demo's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, choices=[0, 1, 2, 3], default=2)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--checkpoint-every", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2)
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    figures = measure(arguments)
    table = RichTable("killed after step", "steps done again", "seconds lost")
    for kill in figures["kills"]:  # type: ignore[union-attr]
        table.add_row(str(kill["step"]), str(kill["steps_lost"]), f"{kill['seconds_lost']:.1f}")
    console.print(table)
    console.print(
        f"undisturbed {figures['undisturbed_seconds']:.0f} s, killed {figures['killed_seconds']:.0f} s; a step takes "
        f"{figures['step_seconds']:.3f} s"
    )
    print(json.dumps(figures))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    settings = TrainingSettings(
        batch_size=PAIRS_PER_STEP,
        dtype="float32",
        zero_stage=arguments.zero_stage,
        num_workers=arguments.workers,
        checkpoint_every=arguments.checkpoint_every,
        max_failures=arguments.kills,
        trackers=[],
    )
    pairs = scored_pairs(arguments.model, num_pairs=PAIRS_PER_STEP * arguments.steps)
    with tempfile.TemporaryDirectory() as temporary, private_ray_token():
        ray.init(num_cpus=arguments.workers, include_dashboard=False, log_to_driver=False)
        runs = [Run(Path(temporary) / name, arguments.model.absolute(), settings) for name in ("undisturbed", "killed")]
        runs[0].train(pairs)
        spacing = arguments.steps // (arguments.kills + 1) // arguments.checkpoint_every * arguments.checkpoint_every
        after = [spacing * number + arguments.checkpoint_every // 2 for number in range(1, arguments.kills + 1)]
        killer = Killer(runs[1], after)
        killer.start()
        runs[1].train(pairs)
        killer.join()
        ray.shutdown()
        step_seconds = runs[0].step_seconds()
        kills = [kill_figures(runs[1], at, step, step_seconds) for at, step in killer.kills]
        weights = [run.weights() for run in runs]
        return {
            "steps_lost": statistics.mean(kill.steps_lost for kill in kills),
            "seconds_lost": round(statistics.mean(kill.seconds_lost for kill in kills), 1),
            "restart_seconds_lost": round(
                statistics.mean(kill.seconds_lost - kill.steps_lost * step_seconds for kill in kills), 1
            ),
            "same_log": runs[0].rows() == runs[1].rows(),
            "same_weights": all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items()),
            "undisturbed_seconds": round(runs[0].seconds, 1),
            "killed_seconds": round(runs[1].seconds, 1),
            "step_seconds": round(step_seconds, 4),
            "kills": [dataclasses.asdict(kill) for kill in kills],
        }


class Killer(threading.Thread):
    """Kills a worker each time that the training has done one of these steps for the first time."""

    def __init__(self, run: Run, after: Sequence[int]):
        super().__init__(daemon=True)
        self.training, self.after = run, after
        self.kills: list[tuple[float, int]] = []
        """When, on the monotonic clock, and the last step logged by then."""

    def run(self) -> None:
        log_path = self.training.folder / "training_log.jsonl"
        for step in self.after:
            while step not in self.training.done:
                time.sleep(0.01)
            killed = time.monotonic()
            workers()[-1].send_signal(signal.SIGKILL)
            logged = max(row.step for row in step_rows(log_path))
            self.kills.append((killed, logged))


def workers() -> list[psutil.Process]:
    """Return the training's worker processes, the oldest first."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::RayTrain") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def kill_figures(run: Run, at: float, step: int, step_seconds: float) -> Kill:
    """Return what one kill cost: the checkpoint gone back to is the newest that was complete."""
    checkpoint = step // run.settings.checkpoint_every * run.settings.checkpoint_every
    again = min(moment for done, moment in run.done.items() if done > step and moment > at)
    return Kill(step, step - checkpoint, round(again - at - step_seconds, 2))


def scored_pairs(model_dir: Path, *, num_pairs: int) -> list[ScoredPair]:
    pairs = demo_pairs(model_dir, num_pairs=num_pairs)
    sequences = [
        (pair.prompt_token_ids, side) for pair in pairs for side in (pair.chosen_token_ids, pair.rejected_token_ids or [])
    ]
    logps = reference_logps(load_model(model_dir, torch.float32), sequences)
    return [
        dataclasses.replace(pair, ref_chosen_logps=logps[2 * index], ref_rejected_logps=logps[2 * index + 1])
        for index, pair in enumerate(pairs)
    ]


if __name__ == "__main__":
    main()
