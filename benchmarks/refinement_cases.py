"""Traces that a model wrote, some of their steps, and K draws for each: what refinement benchmarks work on."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokensqueeze.config import EngineSettings, KLBound, ModelSettings, ProblemSource, Reliable, SamplingSettings
from tokensqueeze.engines.base import Engine, GenerationRequest
from tokensqueeze.engines.checkpoint import context_length, load_tokenizer, model_dir
from tokensqueeze.fingerprint import fingerprint, model_fingerprint, seed_of
from tokensqueeze.problems.prompts import prepare
from tokensqueeze.problems.source import read_problems
from tokensqueeze.rewriters.step_candidates import distinct_candidates, draw_length, ending_tokens, stop_texts
from tokensqueeze.schema import Problem, StepCandidates, Trace
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.sample_traces import SampleTraces
from tokensqueeze.tables import Table
from tokensqueeze.traces.anatomy import Span, step_spans
from tokensqueeze.verifiers.boxed import last_boxed


@dataclass(frozen=True)
class CaseSettings:
    model: str = "demo"
    problems: str = "demo:train"
    num_traces: int = 12
    steps_per_trace: int | None = None
    """Evenly spaced ones; none: all."""
    num_candidates: int = 64
    min_tokens: int = 1
    """Shorter traces are left out."""
    max_tokens: int = 512
    batch_size: int = 64
    threads: int = 1
    dtype: str = "float32"
    shortest_correct_of: int | None = None
    """Draw so many samples per problem and take the shortest correct one; none: one sample, right or wrong."""


def add_case_arguments(parser: argparse.ArgumentParser, *, traces: int, candidates: int, work_dir: str) -> None:
    """Add the options that say which traces and draws a benchmark works on, with its own defaults."""
    parser.add_argument("--model", default="demo", help="a Hugging Face model directory")
    parser.add_argument("--problems", default="demo:train", help="a JSONL or Parquet file of problems")
    parser.add_argument("--traces", type=int, default=traces)
    parser.add_argument("--steps-per-trace", type=int, help="evenly spaced ones; default: all")
    parser.add_argument("--candidates", type=int, default=candidates, help="K, draws per step")
    parser.add_argument("--min-tokens", type=int, default=1, help="leave shorter traces out")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest trace sampled")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work-dir", type=Path, default=Path(work_dir))


def case_settings(arguments: argparse.Namespace, *, dtype: str = "float32") -> CaseSettings:
    return CaseSettings(
        model=arguments.model,
        problems=arguments.problems,
        num_traces=arguments.traces,
        steps_per_trace=arguments.steps_per_trace,
        num_candidates=arguments.candidates,
        min_tokens=arguments.min_tokens,
        max_tokens=arguments.max_tokens,
        threads=arguments.threads,
        dtype=dtype,
    )


@dataclass(frozen=True)
class Case:
    """A trace and the candidates for its steps."""

    problem: Problem
    trace: Trace
    steps: list[StepCandidates]

    @property
    def num_draws(self) -> int:
        return sum(candidate.draws for step in self.steps for candidate in step.candidates)


def source_of(settings: CaseSettings) -> ModelSource:
    engine = EngineSettings(max_batch_size=settings.batch_size, threads=settings.threads)
    return ModelSource(model_dir(settings.model), engine, settings.dtype, ModelSettings().think_end)


def make_cases(settings: CaseSettings, rewriter: KLBound | Reliable, work_dir: Path) -> list[Case]:
    """Return the cases, from `work_dir` where an earlier call with the same settings left them."""
    source = source_of(settings)
    sampled = {
        "model": model_fingerprint(source.folder),
        "dtype": settings.dtype,
        "problems": settings.problems,
        "num_traces": settings.num_traces,
        "shortest_correct_of": settings.shortest_correct_of,
        "tokens": [settings.min_tokens, settings.max_tokens],
        "batch_size": settings.batch_size,
    }
    drawn = {
        "rewriter": rewriter.name,
        "longest": rewriter.max_step_tokens if isinstance(rewriter, Reliable) else None,
        "temperature": rewriter.temperature,
        "seed": rewriter.seed,
        "num_candidates": settings.num_candidates,
        "steps_per_trace": settings.steps_per_trace,
    }
    traces_table = Table(work_dir / "traces" / fingerprint(sampled), Trace)
    steps_table = Table(work_dir / "step_candidates" / fingerprint(sampled | drawn), StepCandidates)
    problems = {problem.problem_id: problem for problem in _problems(settings, source)}
    if not traces_table.is_complete():
        traces_table.write_part(0, _sampled(settings, source, list(problems.values())), {})
        traces_table.complete({"num_shards": 1})
    traces = traces_table.rows()
    if not steps_table.is_complete():
        engine = source.engine()
        rows = [row for trace in traces for row in _drawn(settings, source, engine, rewriter, problems, trace)]
        steps_table.write_part(0, rows, {})
        steps_table.complete({"num_shards": 1})
    steps = steps_table.rows()
    return [
        Case(problems[trace.problem_id], trace, [step for step in steps if step.trace_id == trace.trace_id]) for trace in traces
    ]


def _problems(settings: CaseSettings, source: ModelSource) -> list[Problem]:
    # Some give no trace that is long enough, or none that is correct.
    spare = 4 if settings.shortest_correct_of is None else 1.25
    raw = read_problems(ProblemSource(path=settings.problems, limit=round(spare * settings.num_traces)), key="--problems")
    return prepare(
        raw,
        tokenizer=load_tokenizer(source.folder),
        context_length=context_length(source.folder),
        instruction="Please reason step by step.",
        too_long="drop",
        key="--problems",
    ).problems


def _sampled(settings: CaseSettings, source: ModelSource, problems: Sequence[Problem]) -> list[Trace]:
    sampling = SamplingSettings(num_samples=settings.shortest_correct_of or 1, temperature=0.7, max_tokens=settings.max_tokens)
    traces = SampleTraces(source, sampling)({"problems": list(problems)}).rows
    if settings.shortest_correct_of is not None:
        return _shortest_correct(traces, problems)[: settings.num_traces]
    long = [trace for trace in traces if trace.num_tokens >= settings.min_tokens]
    with_steps = [trace for trace in long if len(step_spans(source.tokens.each(trace.token_ids), source.think_end)) > 2]
    if not with_steps:
        raise SystemExit(f"none of {len(traces)} traces has {settings.min_tokens} tokens and three steps")
    return with_steps[: settings.num_traces]


def _shortest_correct(traces: Sequence[Trace], problems: Sequence[Problem]) -> list[Trace]:
    """Return each problem's shortest trace whose box holds the gold answer, letter for letter."""
    gold = {problem.problem_id: problem.gold_answer for problem in problems}
    shortest: dict[str, Trace] = {}
    for trace in traces:
        correct = trace.finish_reason == "stop" and last_boxed(trace.text) == gold[trace.problem_id]
        if correct and (trace.problem_id not in shortest or trace.num_tokens < shortest[trace.problem_id].num_tokens):
            shortest[trace.problem_id] = trace
    return list(shortest.values())


def _drawn(
    settings: CaseSettings,
    source: ModelSource,
    engine: Engine,
    rewriter: KLBound | Reliable,
    problems: dict[str, Problem],
    trace: Trace,
) -> list[StepCandidates]:
    spans = step_spans(source.tokens.each(trace.token_ids), source.think_end)
    count = min(len(spans), settings.steps_per_trace or len(spans))
    chosen = sorted({round((place + 0.5) * len(spans) / count - 0.5) for place in range(count)})
    ending = ending_tokens(source.think_end, source.tokens)
    steps = [(index, spans[index]) for index in chosen if draw_length(rewriter, len(spans[index]), ending)]
    prompt = problems[trace.problem_id].prompt_token_ids
    requests = [
        GenerationRequest(
            prompt_token_ids=[*prompt, *trace.token_ids[: span.start]],
            max_tokens=draw_length(rewriter, len(span), ending),
            temperature=rewriter.temperature,
            top_p=1.0,
            seed=seed_of("step", rewriter.seed, trace.trace_id, index, draw),
            stop_texts=stop_texts(source.think_end),
        )
        for index, span in steps
        for draw in range(settings.num_candidates)
    ]
    draws = iter(engine.generate(requests))

    def row(index: int, span: Span) -> StepCandidates:
        step_text = source.tokens.text(trace.token_ids[span.start : span.end])
        longest = None if isinstance(rewriter, Reliable) else len(span) - 1
        own = [next(draws) for _ in range(settings.num_candidates)]
        candidates = distinct_candidates(
            own, step_text=step_text, think_end=source.think_end, max_tokens=longest, tokens=source.tokens
        )
        generated = sum(len(draw.token_ids) for draw in own)
        return StepCandidates(
            trace.trace_id, trace.problem_id, index, len(spans), span.start, span.end, step_text, candidates, generated
        )

    return [row(index, span) for index, span in steps]
