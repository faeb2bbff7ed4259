"""What a run leaves for people: evaluation.json, report.html, the model with its card, and run.json, which names the tables."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokensqueeze.methods import METHODS
from tokensqueeze.metrics.evaluation import evaluation_json
from tokensqueeze.pipeline.plan import RunPlan
from tokensqueeze.pipeline.versions import versions
from tokensqueeze.reporting.model_card import model_card
from tokensqueeze.reporting.report_data import ReportData
from tokensqueeze.reporting.report_data import StageRecord as ReportedStage
from tokensqueeze.reporting.run_report import write_report
from tokensqueeze.schema import Row
from tokensqueeze.stages.run_stage import StageRecord
from tokensqueeze.stages.stage import Stage
from tokensqueeze.tables import write_json, write_text


def write_outputs(plan: RunPlan, records: Sequence[StageRecord], output: Path) -> dict[str, Any] | None:
    """Write what there is to write after the stages that were run; return the contents of evaluation.json, if any."""
    done = {record.stage for record in records}
    base = _rows(plan.evaluate_base, done)
    squeezed = _rows(plan.evaluate_squeezed, done)
    evaluation = None
    if base and squeezed:
        evaluation = evaluation_json(base, squeezed, plan.settings.evaluation.token_budget)
        write_json(output / "evaluation.json", evaluation)
    drops = _drop_counts(records)
    write_report(
        ReportData(
            title=f"{Path(plan.settings.model.path).name}, squeezed"
            if "model" in done
            else Path(plan.settings.model.path).name,
            method_name=plan.settings.method,
            method_summary=METHODS[plan.settings.method].summary,
            settings=plan.settings,
            versions=versions(),
            stages=[ReportedStage(r.stage, r.rows, r.seconds, r.tokens, r.workers, r.reused, r.counts) for r in records],
            token_budget=plan.settings.evaluation.token_budget,
            questions={p.problem_id: p.question for problems in plan.problem_sets.values() for p in problems.problems},
            verified_traces=_rows(plan.verify, done),
            selected_traces=_rows(plan.select, done),
            refined_traces=_rows(plan.accept, done),
            pairs=_rows(plan.score, done),
            drop_counts=drops,
            training_log=_training_log(plan) if "model" in done else (),
            base_evaluation=base,
            squeezed_evaluation=squeezed,
            evaluation=evaluation,
        ),
        output / "report.html",
    )
    if "model" in done:
        _put_model(plan, records, evaluation, output / "model")
    stages = (plan.sample, plan.verify, plan.select, plan.propose, plan.accept, plan.pair, plan.score)
    evaluations = [stage for stage in (plan.evaluate_base, plan.evaluate_squeezed) if stage]
    tables = {stage.name: stage.output.path for stage in [*stages, *evaluations] if stage.name in done}
    if any(stage.name in done for stage in evaluations):
        # Comparing this run with another needs to know that both were asked the same.
        tables["problems_test"] = plan.problem_sets["test"].table.path
    write_json(
        output / "run.json",
        {
            "settings": plan.settings.model_dump(),
            "versions": versions(),
            "tables": {name: os.path.relpath(path, output) for name, path in tables.items()},
            "training": os.path.relpath(plan.training_dir, output) if "model" in done else None,
        },
    )
    return evaluation


def _rows(stage: Stage[Row] | None, done: set[str]) -> list[Row]:
    return stage.output.rows() if stage and stage.name in done else []


def _drop_counts(records: Sequence[StageRecord]) -> dict[str, int]:
    """Return how many problems gave no pair, by reason."""
    counts: Mapping[str, float] = next((r.counts for r in records if r.stage == "preference_pairs"), {})
    start = "problems dropped: "
    return {name.removeprefix(start): int(count) for name, count in counts.items() if name.startswith(start)}


def _training_log(plan: RunPlan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (plan.training_dir / "training_log.jsonl").read_text().splitlines()]


def _put_model(plan: RunPlan, records: Sequence[StageRecord], evaluation: Mapping[str, Any] | None, target: Path) -> None:
    """Put the trained model into the run's folder, weights as hard links where the disk allows, with a card of its own."""
    arriving = target.with_name(f".{target.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    shutil.copytree(plan.training_dir / "model", arriving, copy_function=_link_or_copy)
    counts = {record.stage: record.rows for record in records if record.stage != "model"}
    card = model_card(
        model_name=f"{Path(plan.settings.model.path).name}-{plan.settings.method}",
        base_model=plan.settings.model.path,
        method_name=plan.settings.method,
        method_summary=METHODS[plan.settings.method].summary,
        settings=plan.settings,
        counts={"problems": len(plan.problem_sets["train"].problems), **counts},
        evaluation=evaluation,
        versions=versions(),
    )
    (arriving / "README.md").unlink(missing_ok=True)
    write_text(arriving / "README.md", card)
    shutil.rmtree(target, ignore_errors=True)
    arriving.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
