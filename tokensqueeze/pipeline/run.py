"""Do a run: every table of the plan made complete, in order, then the model, its evaluation and the report.

Nothing here remembers: what a killed run has left on disk is found again by its fingerprint, and the rest is made.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tokensqueeze.config import Settings
from tokensqueeze.errors import NoPairsError
from tokensqueeze.pipeline.observer import Observer, SilentObserver
from tokensqueeze.pipeline.outputs import write_outputs
from tokensqueeze.pipeline.plan import ProblemSet, RunPlan, plan_run
from tokensqueeze.pipeline.ray_session import ray_session
from tokensqueeze.stages.run_stage import StageRecord, run_stage
from tokensqueeze.tables import make_folder, read_json, write_json
from tokensqueeze.training.launch import train_model

Until = Literal["sample", "verify", "select", "propose", "accept", "pair", "score", "train", "evaluate"]
STEPS: tuple[Until, ...] = get_args(Until)


@dataclass(frozen=True)
class RunResult:
    plan: RunPlan
    records: list[StageRecord]
    output: Path
    evaluation: dict[str, Any] | None
    """The contents of evaluation.json, where the run came so far and has test problems."""


def run(
    settings: Settings,
    output: Path,
    *,
    store: Path | None = None,
    until: Until = "evaluate",
    address: str | None = None,
    observer: Observer | None = None,
) -> RunResult:
    """Squeeze a model; leave report, model and evaluation in `output`, the tables in `store` (default: `output`/tables).

    Runs that share a store share the tables on which they agree. Killed at any moment and called again, it goes on where it
    was. Raises `TokenSqueezeError`.
    """
    return run_plan(plan_run(settings, store or output / "tables"), output, until=until, address=address, observer=observer)


def run_plan(
    plan: RunPlan,
    output: Path,
    *,
    until: Until = "evaluate",
    address: str | None = None,
    observer: Observer | None = None,
) -> RunResult:
    """Do a planned run."""
    observer = observer or SilentObserver()
    # Ray's workers have working directories of their own.
    output = make_folder(output.absolute())
    for split, problems in plan.problem_sets.items():
        write_problems(problems)
        if problems.dropped_too_long:
            observer.note(f"problems.{split}: {len(problems.dropped_too_long)} dropped, their prompts fill the context")
    steps = _steps(plan, until)
    records: list[StageRecord] = []
    with ray_session(address, plan.settings.resources, training_workers=plan.settings.training.num_workers):
        for number, (name, step) in enumerate(steps, start=1):
            observer.stage_started(name, number, len(steps))
            record = step(observer)
            records.append(record)
            observer.stage_done(record)
    evaluation = write_outputs(plan, records, output)
    return RunResult(plan, records, output, evaluation)


def _steps(plan: RunPlan, until: Until) -> list[tuple[str, Callable[[Observer], StageRecord]]]:
    """Return what there is to do, up to and including `until`."""

    def table_stage(stage: Any, check: Callable[[StageRecord], None] = lambda record: None):
        def step(observer: Observer) -> StageRecord:
            record = run_stage(stage, plan.settings.resources, observer.stage_progress)
            check(record)
            return record

        return stage.name, step

    chain: dict[Until, list[tuple[str, Callable[[Observer], StageRecord]]]] = {
        "sample": [table_stage(plan.sample)],
        "verify": [table_stage(plan.verify)],
        "select": [table_stage(plan.select, lambda record: _needs_selected(plan, record))],
        "propose": [table_stage(plan.propose)],
        "accept": [table_stage(plan.accept)],
        "pair": [table_stage(plan.pair, lambda record: _needs_pairs(plan, record))],
        "score": [table_stage(plan.score)],
        "train": [("model", lambda observer: _train(plan, observer))],
        "evaluate": [table_stage(stage) for stage in (plan.evaluate_base, plan.evaluate_squeezed) if stage],
    }
    return [step for name in STEPS[: STEPS.index(until) + 1] for step in chain[name]]


def write_problems(problems: ProblemSet) -> None:
    """Write a split's table, unless it is there."""
    if problems.table.is_complete():
        return
    shards = problems.shards()
    for index, shard in enumerate(shards):
        problems.table.write_part(index, shard, {"rows": len(shard)})
    problems.table.complete(
        {
            "stage": problems.table.path.parent.name,
            "num_shards": len(shards),
            "dropped_too_long": problems.dropped_too_long,
        }
    )


def _needs_selected(plan: RunPlan, record: StageRecord) -> None:
    if record.rows:
        return
    verdicts = plan.verify.output.manifest()["counts"]
    told = ", ".join(f"{int(verdicts.get(name, 0))} {name}" for name in ("correct", "incorrect", "no_answer", "unverifiable"))
    causes = "; ".join(f"{int(count)} {name}" for name, count in verdicts.items() if ": " in name)
    raise NoPairsError(
        f"no problem has a correct trace, so there is nothing to learn from: {told}{f' ({causes})' if causes else ''}. "
        "Does the prompt ask for \\boxed{} (problems.instruction)? Is sampling.max_tokens large enough? "
        "If the model can't solve these problems, take easier ones"
    )


def _needs_pairs(plan: RunPlan, record: StageRecord) -> None:
    if record.rows:
        return
    why = "; ".join(f"{int(count)} {name}" for name, count in record.counts.items())
    raise NoPairsError(
        f"no preference pair is left: {why}. Draw more traces (sampling.num_samples = {plan.settings.sampling.num_samples}), "
        'take harder problems, or choose an objective that needs no rejected trace (objective.name = "sft")'
    )


def _train(plan: RunPlan, observer: Observer) -> StageRecord:
    """Train unless the trained model is there; its folder is complete when its manifest is."""
    manifest = plan.training_dir / "manifest.json"
    reused = manifest.is_file()
    if not reused:
        started = time.monotonic()
        settings, dev = plan.settings, plan.problem_sets.get("dev")
        outcome = train_model(
            pairs=plan.score.output,
            settings=settings.training,
            objective=settings.objective,
            model_dir=plan.base.folder,
            output_dir=make_folder(plan.training_dir),
            dev_problems=dev.problems if dev else [],
            dev_max_tokens=settings.training.dev_max_tokens,
            think_end=settings.model.think_end,
            progress=observer.training_progress,
        )
        write_json(
            manifest,
            {
                "stage": "model",
                "seconds": round(time.monotonic() - started, 3),
                "counts": {"pairs": outcome.num_pairs, "pairs left out, too long": outcome.num_left_out},
                "steps": outcome.steps,
                "tokens": outcome.tokens,
                "fingerprinted": dict(plan.training_fingerprinted),
            },
        )
    done = read_json(manifest)
    workers = plan.settings.training.num_workers
    return StageRecord(
        "model",
        done["steps"],
        done["tokens"],
        done["seconds"],
        done["seconds"] * workers,
        workers,
        done["counts"],
        reused,
        0,
    )
