"""Do a run: every table of the plan made complete, in order, then the model, its evaluation and the report.

Nothing here remembers: what a killed run has left on disk is found again by its fingerprint, and the rest is made.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tokensqueeze.config import Settings, StageName
from tokensqueeze.errors import NoPairsError
from tokensqueeze.pipeline.observer import Observer, SilentObserver
from tokensqueeze.pipeline.outputs import write_outputs
from tokensqueeze.pipeline.plan import RunPlan, plan_run
from tokensqueeze.pipeline.planned_tables import write_problems
from tokensqueeze.pipeline.ray_session import ray_session
from tokensqueeze.stages.run_stage import PooledStage, StageProgress, StageRecord, run_stages
from tokensqueeze.stages.stage import Stage
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
    if plan.imported:
        plan.imported.write(plan.problem_sets["train"])
        observer.note(f"sampling.traces: {plan.imported.file.summary()}")
    steps = _steps(plan, until)
    listener = NumberedStages([name for step in steps for name in step.stages], observer)
    records: list[StageRecord] = []
    with ray_session(address, plan.settings.resources, training_workers=plan.settings.training.num_workers):
        for step in steps:
            records += step.do(listener)
    evaluation = write_outputs(plan, records, output)
    return RunResult(plan, records, output, evaluation)


@dataclass(frozen=True)
class _Step:
    """One stage, or several that stream into each other."""

    stages: list[str]
    do: Callable[["NumberedStages"], list[StageRecord]]


@dataclass(frozen=True)
class NumberedStages:
    """Tells an observer which of how many stages it hears of."""

    names: list[str]
    observer: Observer

    def started(self, stage: str) -> None:
        self.observer.stage_started(stage, self.names.index(stage) + 1, len(self.names))

    def progressed(self, progress: StageProgress) -> None:
        self.observer.stage_progress(progress)

    def done(self, record: StageRecord) -> None:
        self.observer.stage_done(record)


def _steps(plan: RunPlan, until: Until) -> list[_Step]:
    """Return what there is to do, up to and including `until`."""

    def pooled(name: StageName, stage: Stage[Any] | None) -> list[PooledStage]:
        if stage is None or STEPS.index(name) > STEPS.index(until):
            return []
        return [PooledStage(stage, plan.settings.resources.pool(name))]

    def tables(chain: list[PooledStage], check: Callable[[StageRecord], None] = lambda last: None) -> _Step:
        def do(listener: NumberedStages) -> list[StageRecord]:
            records = run_stages(chain, listener)
            check(records[-1])
            return records

        return _Step([pooled.stage.name for pooled in chain], do)

    steps = [
        tables(pooled("sample", plan.sample)),
        tables(pooled("verify", plan.verify)),
        tables(pooled("select", plan.select), lambda record: _needs_selected(plan, record)),
        tables(pooled("propose", plan.propose) + pooled("accept", plan.accept)),
        tables(pooled("pair", plan.pair), lambda record: _needs_pairs(plan, record)),
        tables(pooled("score", plan.score)),
        _Step(["model"] if STEPS.index("train") <= STEPS.index(until) else [], lambda listener: _train(plan, listener)),
        tables(pooled("evaluate", plan.evaluate_base)),
        tables(pooled("evaluate", plan.evaluate_squeezed)),
    ]
    return [step for step in steps if step.stages]


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


def _train(plan: RunPlan, listener: NumberedStages) -> list[StageRecord]:
    """Train unless the trained model is there; its folder is complete when its manifest is."""
    manifest = plan.training_dir / "manifest.json"
    reused = manifest.is_file()
    listener.started("model")
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
            think_end=settings.model.think_end,
            verifier=settings.verifier,
            progress=listener.observer.training_progress,
            warn=listener.observer.note,
        )
        write_json(
            manifest,
            {
                "stage": "model",
                "seconds": round(time.monotonic() - started, 3),
                "counts": {
                    "pairs": outcome.num_pairs,
                    **{f"pairs left out, {reason}": count for reason, count in outcome.left_out.items()},
                },
                "steps": outcome.steps,
                "tokens": outcome.tokens,
                "fingerprinted": dict(plan.training_fingerprinted),
            },
        )
    done = read_json(manifest)
    workers = plan.settings.training.num_workers
    record = StageRecord(
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
    listener.done(record)
    return [record]
