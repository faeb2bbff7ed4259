"""Evaluate one model on benchmarks: a directory, or a server; killed and run again, it goes on where it was.

For every benchmark a table of problems, one of traces with their verdicts, and where thinking budgets are set one of what
the traces would have come to under each. `evaluation.json` has the figures, and says where the tables are.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from tokensqueeze.config import (
    EvaluateSettings,
    EvaluationSettings,
    ProblemSource,
    ResourcesSettings,
    TraceSource,
    mistakes_text,
)
from tokensqueeze.demo import settings_file as demo_settings_file
from tokensqueeze.engines.checkpoint import context_length, load_tokenizer, model_dir
from tokensqueeze.engines.endpoint import api_key, served_model
from tokensqueeze.errors import ProblemsError, SettingsError, TokenSqueezeError
from tokensqueeze.fingerprint import fingerprint, model_fingerprint
from tokensqueeze.methods import load_settings
from tokensqueeze.metrics.evaluation import measure
from tokensqueeze.pipeline.import_traces import ImportedTable, imported_table, read_trace_file
from tokensqueeze.pipeline.observer import Observer, SilentObserver
from tokensqueeze.pipeline.planned_tables import ProblemSet, Tables, problem_set, write_problems
from tokensqueeze.pipeline.ray_session import ray_session
from tokensqueeze.pipeline.run import NumberedStages
from tokensqueeze.pipeline.versions import versions
from tokensqueeze.problems.benchmarks import BENCHMARKS, Benchmark, benchmark, read_benchmark
from tokensqueeze.problems.demo import PREFIX as DEMO_PREFIX
from tokensqueeze.problems.prompts import PreparedProblems, prepare
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.source import read_problems
from tokensqueeze.schema import Decoding, EvaluationTrace, ForcedTrace, Problem
from tokensqueeze.stages.evaluate_endpoint import EvaluateEndpoint
from tokensqueeze.stages.evaluate_imported import EvaluateImported
from tokensqueeze.stages.evaluate_model import EvaluateModel
from tokensqueeze.stages.force_budgets import ForceBudgets
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.run_stage import PooledStage, run_stages
from tokensqueeze.stages.stage import Stage
from tokensqueeze.tables import MANIFEST, held, make_folder, read_json, write_json
from tokensqueeze.verifiers.verdict import VERDICT_RULES

FIGURES_FILE = "evaluation.json"


@dataclass(frozen=True)
class BenchmarkSource:
    """What to evaluate on: a benchmark's name with its file or data set, or any name with a problem file of one's own."""

    name: str
    path: str
    limit: int | None = None


@dataclass(frozen=True)
class PlannedBenchmark:
    name: str
    path: str
    problems: ProblemSet
    decoding: Mapping[str, Any]
    """What the traces were decoded with; of imported ones what was said of it, None where nothing was."""
    token_budget: int
    evaluate: Stage[EvaluationTrace]
    force: Stage[ForcedTrace] | None
    imported: ImportedTable | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    settings: EvaluateSettings
    model_name: str
    model_path: str
    """The directory, or the server's address."""
    model_fingerprint: str
    """Of the weights and all else that is the model's; of a server only of its address and name."""
    benchmarks: list[PlannedBenchmark]


def plan_evaluation(
    settings: EvaluateSettings, sources: Sequence[BenchmarkSource], store: Path, *, allow_download: bool = False
) -> EvaluationPlan:
    """Plan an evaluation; starts nothing, though a server is asked for its models.

    Raises `SettingsError` that lists every benchmark and model that can't be used, or `EngineError` for a server.
    """
    store = store.absolute()  # Ray's workers have working directories of their own.
    model = _model_of(settings)
    mistakes: list[str] = []
    planned: list[PlannedBenchmark] = []
    for source in [*sources, *([settings.traces] if settings.traces else [])]:
        try:
            if isinstance(source, TraceSource):
                planned.append(_planned_traces(source, settings, model, store))
            else:
                planned.append(_planned(source, settings, model, store, allow_download=allow_download))
        except TokenSqueezeError as error:
            mistakes.append(str(error))
    if twice := [name for name, times in Counter(each.name for each in planned).items() if times > 1]:
        mistakes.append(f"{twice[0]}: evaluated on twice; give each file a name of its own, with --benchmark NAME=PATH")
    if settings.traces and not sources and (settings.decoding.num_samples is not None or settings.decoding.greedy):
        mistakes.append("decoding: traces that are there are not drawn; take num_samples and greedy out, or name a --benchmark")
    if not planned and not mistakes:
        mistakes.append("nothing to evaluate on: name a --benchmark, or a file of --traces")
    if mistakes:
        raise SettingsError(mistakes_text(mistakes))
    return EvaluationPlan(settings, model.name, model.path, fingerprint(model.identity), planned)


def run_evaluation(
    plan: EvaluationPlan, output: Path, *, address: str | None = None, observer: Observer | None = None
) -> dict[str, Any]:
    """Make the planned tables complete, write `evaluation.json` into `output` and return its contents."""
    observer = observer or SilentObserver()
    output = make_folder(output.absolute())
    pool = plan.settings.resources
    chains: list[list[Stage[Any]]] = [
        [each.evaluate, each.force] if each.force else [each.evaluate] for each in plan.benchmarks
    ]
    listener = NumberedStages([stage.name for chain in chains for stage in chain], observer)
    with held(output), ray_session(address, ResourcesSettings(**pool.model_dump())):
        for each, chain in zip(plan.benchmarks, chains, strict=True):
            write_problems(each.problems)
            if dropped := each.problems.dropped_too_long:
                observer.note(f"{each.name}: {len(dropped)} problems dropped, their prompts fill the context")
            if each.imported:
                each.imported.write(each.problems)
            # One after the other: both hold the model.
            for stage in chain:
                run_stages([PooledStage(stage, pool)], listener)
        figures = {
            "kind": "evaluation",
            "model": plan.model_name,
            "model_path": plan.model_path,
            "model_fingerprint": plan.model_fingerprint,
            "settings": plan.settings.model_dump(),
            "versions": versions(),
            "benchmarks": earlier_figures(plan, output) | {each.name: _figures(each, output) for each in plan.benchmarks},
        }
        write_json(output / FIGURES_FILE, figures)
    return figures


def earlier_figures(plan: EvaluationPlan, output: Path) -> dict[str, Any]:
    """Return the figures on other benchmarks that an earlier call left of the same model, where their tables are there."""
    file = output / FIGURES_FILE
    before = read_json(file) if file.is_file() else {}
    if before.get("model_fingerprint") != plan.model_fingerprint:
        return {}
    benchmarks: dict[str, Any] = before.get("benchmarks", {})
    return {name: own for name, own in benchmarks.items() if (output / own["tables"]["evaluation"] / MANIFEST).is_file()}


@dataclass(frozen=True)
class _Model:
    name: str
    path: str
    identity: Mapping[str, Any]
    """What tables depend on."""
    source: ModelSource | None
    """None for a server."""
    api_key: str | None = None


def _model_of(settings: EvaluateSettings) -> _Model:
    think_end = settings.model.think_end
    if settings.endpoint.url:
        key = api_key(settings.endpoint)
        name = served_model(settings.endpoint, key)
        # A server does not tell which weights it has.
        identity = {"endpoint": settings.endpoint.url, "model": name, "think_end": think_end}
        if settings.endpoint.tokenizer:
            folder = Path(settings.endpoint.tokenizer)
            identity["tokenizer"] = model_fingerprint(folder)
            load_tokenizer(folder)
        return _Model(name, settings.endpoint.url, identity, None, key)
    folder = model_dir(settings.model.path)
    identity = {"model": model_fingerprint(folder), "dtype": settings.model.dtype, "think_end": think_end}
    source = ModelSource(folder, settings.engine, settings.model.dtype, think_end)
    return _Model(Path(settings.model.path).name, settings.model.path, identity, source)


def _planned(
    source: BenchmarkSource, settings: EvaluateSettings, model: _Model, store: Path, *, allow_download: bool
) -> PlannedBenchmark:
    known = BENCHMARKS.get(source.name)
    key = f"--benchmark {source.name}" if known else "problems"
    raw = _read(source, known, settings, key=key, allow_download=allow_download)
    instruction = settings.instruction if settings.instruction is not None else known.instruction if known else ""
    problems = problem_set(
        _prepared(raw, model, settings, instruction, key=key), f"problems_{source.name}", store, per_shard=settings.per_shard
    )
    decoding = _decoding(source, known, settings)
    verifier = settings.verifier
    if known and "answer_forms" not in verifier.model_fields_set:
        verifier = verifier.model_copy(update={"answer_forms": list(known.answer_forms)})
    tables = Tables(store, len(problems.shards()))
    depends = {
        "evaluation": decoding.model_dump(exclude={"token_budget"}),
        "verifier": verifier.model_dump(),
        "verdict_rules": VERDICT_RULES,
        "problems": problems.fingerprint,
        **model.identity,
    }
    if model.source is None:
        worker = partial(
            EvaluateEndpoint, settings.endpoint, model.name, model.api_key, settings.model.think_end, decoding, verifier
        )
    else:
        worker = partial(EvaluateModel, model.source, decoding, verifier)
        depends["engine"] = settings.engine.model_dump(exclude={"gpu_memory_utilization"})
    inputs = {"problems": problems.table}
    evaluate = tables.stage(
        f"evaluation_{source.name}", EvaluationTrace, inputs, worker, depends, runs_model=model.source is not None
    )
    force = None
    if settings.forcing.thinking_budgets and model.source:
        force = tables.stage(
            f"forced_{source.name}",
            ForcedTrace,
            inputs | {"evaluation": evaluate.output},
            partial(ForceBudgets, model.source, settings.forcing, decoding, verifier),
            {"forcing": settings.forcing.model_dump(), "evaluation": evaluate.output.path.name},
            runs_model=True,
        )
    decoded = decoding.model_dump(exclude={"token_budget"})
    return PlannedBenchmark(source.name, source.path, problems, decoded, decoding.token_budget, evaluate, force)


def _planned_traces(source: TraceSource, settings: EvaluateSettings, model: _Model, store: Path) -> PlannedBenchmark:
    assert model.source, "settings with traces and a server were refused"
    name, file = Path(source.path).stem, read_trace_file(source, key="traces")
    problems = problem_set(
        _prepared(file.problems, model, settings, settings.instruction or "", key="traces"),
        f"problems_{name}",
        store,
        per_shard=source.per_shard,
    )
    imported = imported_table(file, problems, store, key="traces")
    evaluate = Tables(store, len(problems.shards())).stage(
        f"evaluation_{name}",
        EvaluationTrace,
        {"problems": problems.table, "imported_traces": imported.table},
        partial(EvaluateImported, model.source, settings.verifier),
        {
            "imported": imported.table.path.name,
            "verifier": settings.verifier.model_dump(),
            "verdict_rules": VERDICT_RULES,
            **model.identity,
        },
    )
    said = settings.decoding.model_dump(exclude={"token_budget", "greedy", "seed"})
    budget = settings.decoding.token_budget or EvaluationSettings().token_budget
    return PlannedBenchmark(name, source.path, problems, said, budget, evaluate, None, imported)


def _read(
    source: BenchmarkSource, known: Benchmark | None, settings: EvaluateSettings, *, key: str, allow_download: bool
) -> list[RawProblem]:
    if known:
        return read_benchmark(source.name, source.path, limit=source.limit, allow_download=allow_download, key=key)
    own = ProblemSource(path=source.path, limit=source.limit, allow_download=allow_download, **settings.problems.model_dump())
    return read_problems(own, key=key)


def _prepared(
    raw: Sequence[RawProblem], model: _Model, settings: EvaluateSettings, instruction: str, *, key: str
) -> PreparedProblems:
    if model.source:
        return prepare(
            raw,
            tokenizer=load_tokenizer(model.source.folder),
            context_length=context_length(model.source.folder),
            instruction=instruction,
            too_long=settings.too_long,
            key=key,
        )
    # A server has the chat template, and counts the prompt itself.
    problems = [
        Problem(
            each.problem_id,
            each.question,
            each.gold_answer,
            f"{each.question}\n\n{instruction}" if instruction else each.question,
            [],
            answer_kind=each.answer_kind,
            level=each.level,
        )
        for each in raw
    ]
    return PreparedProblems(problems, [])


def _decoding(source: BenchmarkSource, known: Benchmark | None, settings: EvaluateSettings) -> EvaluationSettings:
    """Return the benchmark's own decoding, with what the settings have otherwise."""
    if known:
        own = {name: getattr(known, name) for name in ("num_samples", "temperature", "top_p", "max_tokens", "token_budget")}
    elif source.path.startswith(DEMO_PREFIX):
        own = load_settings(demo_settings_file()).evaluation.model_dump()
    else:
        own = EvaluationSettings().model_dump()  # the paper's values
    return EvaluationSettings(**own | settings.decoding.model_dump(exclude_none=True))


def _figures(planned: PlannedBenchmark, output: Path) -> dict[str, Any]:
    traces = planned.evaluate.output.rows()
    budget = planned.token_budget
    by_decoding = {decoding: [t for t in traces if t.decoding == decoding] for decoding in get_args(Decoding)}
    forced = planned.force.output.rows() if planned.force else []
    budgets = sorted({trace.thinking_budget for trace in forced})
    return {
        "source": planned.path,
        "token_budget": budget,
        "decoding": dict(planned.decoding),
        "cells": {decoding: asdict(measure(own, budget)) for decoding, own in by_decoding.items() if own},
        "forced": {
            str(thinking): asdict(measure([t for t in forced if t.thinking_budget == thinking], budget)) for thinking in budgets
        },
        "tables": {
            "problems": os.path.relpath(planned.problems.table.path, output),
            "evaluation": os.path.relpath(planned.evaluate.output.path, output),
            "forced": os.path.relpath(planned.force.output.path, output) if planned.force else None,
        },
    }


def benchmark_source(text: str, *, limit: int | None) -> BenchmarkSource:
    """Read `NAME=PATH`, or a NAME alone: a benchmark's own data set on the Hugging Face hub, or the demo's problems.

    Raises `ProblemsError` for a name alone that is neither.
    """
    name, _, path = text.partition("=")
    if not path:
        path = f"{DEMO_PREFIX}test" if name == "demo" else benchmark(name).dataset
    if not all(character.isalnum() or character in "_-." for character in name) or not name.strip("."):
        raise ProblemsError(f"--benchmark {text}: {name!r} is no name; letters, digits, _, - and . make one")
    return BenchmarkSource(name, path, limit)
