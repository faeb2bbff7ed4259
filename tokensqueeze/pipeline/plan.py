"""The chain of tables a run will make, each with the fingerprint of all it depends on.

Planning reads settings, problem files and the model's directory, and starts nothing. A table's folder is
`<store>/<table>/<fingerprint>`, so a changed setting leads to new folders for what depends on it, and to the old ones for
the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tokensqueeze.config import SFT, NoRewrite, ProblemSource, Reliable, Settings, TraceSource
from tokensqueeze.engines.checkpoint import context_length, load_tokenizer, model_dir
from tokensqueeze.errors import SettingsError, TokenSqueezeError
from tokensqueeze.fingerprint import model_fingerprint
from tokensqueeze.pipeline.import_traces import ImportedTable, TraceFile, imported_table, read_trace_file
from tokensqueeze.pipeline.planned_tables import RULES_VERSIONS, ProblemSet, Tables, problem_set, table_name
from tokensqueeze.problems.prompts import prepare
from tokensqueeze.problems.source import read_problems
from tokensqueeze.schema import (
    EvaluationTrace,
    PreferencePair,
    RefinedTrace,
    ScoredPair,
    SelectedTrace,
    StepCandidates,
    Trace,
    VerifiedTrace,
)
from tokensqueeze.settings_file import mistakes_text
from tokensqueeze.stages.accept_steps import AcceptSteps
from tokensqueeze.stages.build_pairs import BuildPairs
from tokensqueeze.stages.evaluate_model import EvaluateModel
from tokensqueeze.stages.import_traces import ImportTraces
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.propose_steps import ProposeSteps
from tokensqueeze.stages.sample_traces import SampleTraces
from tokensqueeze.stages.score_reference import ScoreReference
from tokensqueeze.stages.select_traces import SelectTraces
from tokensqueeze.stages.stage import Stage
from tokensqueeze.stages.verify_traces import VerifyTraces
from tokensqueeze.verifiers.verdict import VERDICT_RULES

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class RunPlan:
    settings: Settings
    base: ModelSource
    problem_sets: Mapping[Split, ProblemSet]
    imported: ImportedTable | None
    """Traces that were made elsewhere, where the sample stage draws none."""
    sample: Stage[Trace]
    verify: Stage[VerifiedTrace]
    select: Stage[SelectedTrace]
    propose: Stage[StepCandidates]
    accept: Stage[RefinedTrace]
    pair: Stage[PreferencePair]
    score: Stage[ScoredPair]
    training_dir: Path
    training_fingerprinted: Mapping[str, Any]
    evaluate_base: Stage[EvaluationTrace] | None
    evaluate_squeezed: Stage[EvaluationTrace] | None


def plan_run(settings: Settings, store: Path) -> RunPlan:
    """Plan a run. Raises `SettingsError` that lists every problem file and model directory that can't be used."""
    store = store.absolute()  # Ray's workers have working directories of their own.
    folder, problem_sets, trace_file = _checked_inputs(settings, store)
    think_end = settings.model.think_end
    base = ModelSource(folder, settings.engine, settings.model.dtype, think_end)
    model = {"model": model_fingerprint(folder), "dtype": settings.model.dtype, "think_end": think_end}
    engine = settings.engine.model_dump(exclude={"gpu_memory_utilization"})
    train = problem_sets["train"]
    tables = Tables(store, len(train.shards()))
    problems = {"problems": train.table}
    rewriter, drawing = settings.rewriter, _drawing(settings)

    imported = imported_table(trace_file, train, store, key="sampling.traces") if trace_file else None
    if imported:
        sample = tables.stage(
            "traces",
            Trace,
            problems | {"imported_traces": imported.table},
            partial(ImportTraces, base),
            {"imported_traces": imported.table.path.name, **model},
        )
    else:
        drawn = settings.sampling.model_dump(exclude={"traces"})
        sample = tables.stage(
            "traces",
            Trace,
            problems,
            partial(SampleTraces, base, settings.sampling),
            {"sampling": drawn, "engine": engine, "problems": train.fingerprint, **model},
            runs_model=True,
        )
    verify = tables.stage(
        "verified_traces",
        VerifiedTrace,
        problems | {"traces": sample.output},
        partial(VerifyTraces, base, settings.verifier),
        {
            "verifier": settings.verifier.model_dump(),
            "verdict_rules": VERDICT_RULES,
            "think_end": think_end,
            "traces": sample.output.path.name,
        },
    )
    select = tables.stage(
        "selected_traces",
        SelectedTrace,
        {"verified_traces": verify.output},
        partial(SelectTraces, settings.selector),
        {"selector": settings.selector.model_dump(), "verified_traces": verify.output.path.name},
    )
    propose = tables.stage(
        "step_candidates",
        StepCandidates,
        problems | {"selected_traces": select.output},
        partial(ProposeSteps, base, rewriter),
        {"drawing": drawing, "engine": engine, "selected_traces": select.output.path.name, **model},
        runs_model=not isinstance(rewriter, NoRewrite),
    )
    # What is checked beyond the window is in the rows, and in no decision: what follows depends on the decisions.
    decided = {
        "rewriter": rewriter.model_dump(exclude={"check_rest"}),
        "step_candidates": propose.output.path.name,
        **model,
    }
    accept = tables.stage(
        "refined_traces",
        RefinedTrace,
        problems | {"selected_traces": select.output, "step_candidates": propose.output},
        partial(AcceptSteps, base, rewriter),
        decided | {"rewriter": rewriter.model_dump()},
        runs_model=not isinstance(rewriter, NoRewrite),
    )
    with_rejected = not isinstance(settings.objective, SFT)
    pair = tables.stage(
        "preference_pairs",
        PreferencePair,
        problems | {"refined_traces": accept.output, "verified_traces": verify.output},
        partial(BuildPairs, settings.pairing, with_rejected=with_rejected),
        {
            "pairing": settings.pairing.model_dump(),
            "with_rejected": with_rejected,
            "refined_traces": table_name(decided, RULES_VERSIONS["refined_traces"]),
            "verified_traces": verify.output.path.name,
        },
    )
    score = tables.stage(
        "scored_pairs",
        ScoredPair,
        {"preference_pairs": pair.output},
        partial(ScoreReference, base),
        {"preference_pairs": pair.output.path.name, **model},
        runs_model=True,
    )
    dev, test = problem_sets.get("dev"), problem_sets.get("test")
    training = {
        "training": settings.training.decisive(),
        "objective": settings.objective.model_dump(),
        "scored_pairs": score.output.path.name,
        "dev": dev.fingerprint if dev else None,
        **model,
    }
    training_dir = store / "model" / table_name(training)
    evaluations: list[Stage[EvaluationTrace] | None] = [None, None]
    if test:
        shared = {
            "evaluation": settings.evaluation.model_dump(exclude={"token_budget"}),
            "verifier": settings.verifier.model_dump(),
            "verdict_rules": VERDICT_RULES,
            "engine": engine,
            "problems": test.fingerprint,
        }
        squeezed = ModelSource(training_dir / "model", settings.engine, settings.model.dtype, think_end)
        evaluations = [
            Tables(store, len(test.shards())).stage(
                f"evaluation_{name}",
                EvaluationTrace,
                {"problems": test.table},
                partial(EvaluateModel, source, settings.evaluation, settings.verifier),
                shared | identity,
                runs_model=True,
            )
            for name, source, identity in (
                ("base", base, model),
                ("squeezed", squeezed, {"training": training_dir.name, "dtype": settings.model.dtype}),
            )
        ]
    return RunPlan(
        settings,
        base,
        problem_sets,
        imported,
        sample,
        verify,
        select,
        propose,
        accept,
        pair,
        score,
        training_dir,
        training,
        evaluations[0],
        evaluations[1],
    )


def _drawing(settings: Settings) -> dict[str, Any]:
    """Return those of the rewriter's settings that the draws depend on: a changed bound leaves the draws as they are."""
    rewriter = settings.rewriter
    if isinstance(rewriter, NoRewrite):
        return {"name": "none"}
    cut = rewriter.max_step_tokens if isinstance(rewriter, Reliable) else "shorter than the step"
    return {"cut": cut, **rewriter.model_dump(include={"num_candidates", "temperature", "seed", "unit"})}


def _checked_inputs(settings: Settings, store: Path) -> tuple[Path, dict[Split, ProblemSet], TraceFile | None]:
    mistakes: list[str] = []
    folder, problem_sets, trace_file = None, {}, None
    try:
        folder = model_dir(settings.model.path)
        tokenizer, context = load_tokenizer(folder), context_length(folder)
    except TokenSqueezeError as error:
        mistakes.append(str(error))
    splits: dict[Split, ProblemSource | TraceSource | None] = {
        "train": settings.sampling.traces or settings.problems.train,
        "dev": settings.problems.dev,
        "test": settings.problems.test,
    }
    for split, source in splits.items():
        if source is None:
            continue
        key = f"problems.{split}"
        try:
            if isinstance(source, TraceSource):
                key = "sampling.traces"
                trace_file = read_trace_file(source, key=key)
                raw = trace_file.problems
            else:
                raw = read_problems(source, key=key)
            if folder is None or mistakes:
                continue
            prepared = prepare(
                raw,
                tokenizer=tokenizer,
                context_length=context,
                instruction=settings.problems.instruction,
                too_long=settings.problems.too_long,
                key=key,
            )
        except TokenSqueezeError as error:
            mistakes.append(str(error))
            continue
        problem_sets[split] = problem_set(prepared, f"problems_{split}", store, per_shard=source.per_shard)
    if mistakes or folder is None:
        raise SettingsError(mistakes_text(mistakes))
    return folder, problem_sets, trace_file
