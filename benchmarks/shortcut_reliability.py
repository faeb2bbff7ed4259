"""How dependably does the model take the shortcuts that rewriting accepts, by rule and by what counts as one form?

    python -m benchmarks.shortcut_reliability [--problems 64] [--samples 16] [--candidates 32] [--only NAME …]
    python -m benchmarks.shortcut_reliability --model DIR --texts FILE --window 512 --max-step-tokens 256

Direct evidence: an accepted text that is shorter than its step and states a result is written down up to just before that
result, at its place in the original trace, and the model goes on 16 times at temperature 1.0; the shortcut's reliability
is how often the same number comes next. The result is the text's last number, at the first place where an equals sign
stands before it if there is one. `fewer equations` are the shortcuts that skip worked-out arithmetic, and not just words;
`all steps` are those of the refined traces, kept or rewritten, that state a result. `draws` is tokens generated over those
of `kl_bound`. Rules that draw alike see the same draws and verdicts.

Without --texts the traces are the model's own, a correct one of each problem: the shortest, a random one, or with
`--selector corrected` the shortest in which a step takes back the one before it. FILE is JSONL with a question in "prompt"
and a completion, its steps apart by blank lines, in "text"; these are taken to be correct.
"""

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from tokensqueeze.config import (
    EngineSettings,
    KLBound,
    ModelSettings,
    ProblemSource,
    RandomCorrect,
    Reliable,
    SamplingSettings,
    Shortest,
    VerifierSettings,
)
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.engines.checkpoint import context_length, load_tokenizer, model_dir
from tokensqueeze.fingerprint import seed_of
from tokensqueeze.problems.prompts import prepare
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.source import read_problems
from tokensqueeze.rewriters.choice import Choice, Judged, Rule, answered
from tokensqueeze.rewriters.decide import rule_of
from tokensqueeze.rewriters.judge_steps import Judging, TraceSteps, judge_steps
from tokensqueeze.rewriters.step_candidates import stop_texts
from tokensqueeze.schema import Candidate, Problem, SelectedTrace, StepCandidates, Trace
from tokensqueeze.scoring.bounds import Bound
from tokensqueeze.scoring.window_kl import WindowScorer
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.propose_steps import ProposeSteps
from tokensqueeze.stages.sample_traces import SampleTraces
from tokensqueeze.stages.select_traces import SelectTraces
from tokensqueeze.stages.verify_traces import VerifyTraces
from tokensqueeze.traces.anatomy import Span, step_spans
from tokensqueeze.traces.corrections import corrected_units

SELECTORS = {"shortest": Shortest(), "random": RandomCorrect(), "corrected": Shortest()}
VARIANTS: dict[str, dict[str, Any]] = {
    "masked_numbers": {},
    "masked_content": {"form": "masked_content"},
    "length_class": {"form": "length_class"},
    "edit_cluster 0.1": {"form": "edit_cluster", "max_edit_distance": 0.1},
    "edit_cluster 0.2": {"form": "edit_cluster", "max_edit_distance": 0.2},
    "edit_cluster 0.3": {"form": "edit_cluster", "max_edit_distance": 0.3},
    "edit_cluster 0.5": {"form": "edit_cluster", "max_edit_distance": 0.5},
    "masked_numbers ρ 0.5": {"min_reliability": 0.5},
    "masked_numbers ρ 0.7": {"min_reliability": 0.7},
    "masked_numbers ρ 0.8": {"min_reliability": 0.8},
    "masked_numbers ρ 0.95": {"min_reliability": 0.95},
    "masked_numbers draws ≥ 1": {"min_form_draws": 1},
    "masked_numbers draws ≥ 2": {"min_form_draws": 2},
    "masked_numbers draws ≥ 8": {"min_form_draws": 8},
    "masked_numbers draws ≥ 33": {"min_form_draws": 33},
    "masked_numbers ρ 0.7 draws ≥ 1": {"min_reliability": 0.7, "min_form_draws": 1},
    "edit_cluster 0.5 draws ≥ 1": {"form": "edit_cluster", "max_edit_distance": 0.5, "min_form_draws": 1},
    "masked_content draws ≥ 1": {"form": "masked_content", "min_form_draws": 1},
    "masked_numbers, single steps": {"unit": "step"},
    "masked_content, single steps": {"form": "masked_content", "unit": "step"},
    "edit_cluster 0.5, single steps": {"form": "edit_cluster", "max_edit_distance": 0.5, "unit": "step"},
}
"""What each row changes in the reliable rewriter's settings."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MORE_TOKENS = 8
"""Beyond those behind which the text ends: "So Tom has" may go on "now 78"."""


@dataclass(frozen=True)
class Corpus:
    problems: dict[str, Problem]
    traces: list[SelectedTrace]

    def trace(self, step: StepCandidates) -> SelectedTrace:
        (trace,) = (trace for trace in self.traces if trace.trace_id == step.trace_id)
        return trace


@dataclass(frozen=True)
class Stated:
    """A step's text written down up to its result."""

    prompt_token_ids: tuple[int, ...]
    result: str
    num_tokens: int
    """From there to the text's end."""
    shortcut: bool
    """Accepted in the place of a longer text."""
    fewer_equations: bool
    """And of one that works out more."""


@dataclass(frozen=True)
class Drawn:
    """One stage's draws, and what the KL bound says of every candidate."""

    steps: list[StepCandidates]
    verdicts: list[dict[int, Judged]]
    """By first draw."""
    tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a Hugging Face model directory")
    parser.add_argument("--texts", type=Path, help="JSONL of prompts and texts; default: sample the demo's problems")
    parser.add_argument("--problems", type=int, default=64, help="problems, or texts, at most")
    parser.add_argument("--samples", type=int, default=16, help="traces sampled per problem")
    parser.add_argument("--selector", choices=list(SELECTORS), default="shortest", help="which correct trace is rewritten")
    parser.add_argument("--candidates", type=int, default=32, help="K, draws per step")
    parser.add_argument("--continuations", type=int, default=16, help="per shortcut")
    parser.add_argument("--window", type=int, default=64, help="T, in tokens")
    parser.add_argument("--max-step-tokens", type=int, default=96, help="longest draw of the reliable rewriter")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest trace")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="variants to compare")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(width=180)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    engine = EngineSettings(max_batch_size=arguments.batch_size, threads=arguments.threads)
    source = ModelSource(model_dir(arguments.model), engine, "float32", ModelSettings().think_end)
    corpus = _read_texts(arguments, source) if arguments.texts else _sample(arguments, source)
    console.print(f"{len(corpus.traces)} traces, {statistics.mean(t.num_tokens for t in corpus.traces):.0f} tokens on average")
    figures = measure(arguments, source, corpus, console)
    console.print(_table(figures))
    print(json.dumps({"traces": len(corpus.traces), "rules": figures}, ensure_ascii=False))


def measure(
    arguments: argparse.Namespace, source: ModelSource, corpus: Corpus, console: Console
) -> dict[str, dict[str, float | None]]:
    shared = {"num_candidates": arguments.candidates, "window_tokens": arguments.window, "seed": arguments.seed}
    rules: dict[str, KLBound | Reliable] = {"none": KLBound(**shared), "kl_bound": KLBound(**shared)}
    for name in arguments.only:
        rules[name] = Reliable(**shared, max_step_tokens=arguments.max_step_tokens, **VARIANTS[name])
    drawn: dict[str, Drawn] = {}
    stated: dict[str, list[Stated]] = {}
    figures: dict[str, dict[str, float | None]] = {}
    for name, rewriter in rules.items():
        # Rules that draw alike share the draws and the verdicts.
        drawing = rewriter.unit if isinstance(rewriter, Reliable) else rewriter.name
        if drawing not in drawn:
            drawn[drawing] = _draw(source, corpus, rewriter)
            console.print(
                f"{drawing}: {len(drawn[drawing].steps)} units, {drawn[drawing].tokens} tokens drawn", highlight=False
            )
        own = drawn[drawing]
        decided = zip(own.steps, own.verdicts, strict=True)
        kept = [(step, _kept(rewriter, corpus, step, heard) if name != "none" else None) for step, heard in decided]
        stated[name] = [one for step, candidate in kept if (one := _stated(source, corpus, step, candidate))]
        saved = [len(_step_ids(corpus, step)) - len(candidate.token_ids) for step, candidate in kept if candidate]
        figures[name] = {
            "rewritten": len(saved),
            "longer": sum(one < 0 for one in saved),
            "saved_per_trace": round(sum(saved) / len(corpus.traces), 2),
            "draws": round(own.tokens / drawn["kl_bound"].tokens, 2) if name != "none" else 0,
        }
    reliability = _reliabilities(source, [one for own in stated.values() for one in own], arguments)
    for name, own in stated.items():
        figures[name] |= _shares([reliability[_place(one)] for one in own if one.shortcut], "shortcuts")
        figures[name] |= _shares([reliability[_place(one)] for one in own if one.fewer_equations], "fewer_equations")
        figures[name] |= _shares([reliability[_place(one)] for one in own], "all_steps")
    return figures


def _sample(arguments: argparse.Namespace, source: ModelSource) -> Corpus:
    raw = read_problems(ProblemSource(path="demo:train", limit=arguments.problems, seed=arguments.seed), key="--problems")
    problems = _prepared(raw, source)
    sampling = SamplingSettings(
        num_samples=arguments.samples, temperature=0.7, max_tokens=arguments.max_tokens, seed=arguments.seed
    )
    traces = SampleTraces(source, sampling)({"problems": problems}).rows
    verified = VerifyTraces(source, VerifierSettings())({"problems": problems, "traces": traces}).rows
    if arguments.selector == "corrected":
        verified = [trace for trace in verified if _mends_a_step(source, trace)]
    chosen = SelectTraces(SELECTORS[arguments.selector])({"verified_traces": verified}).rows
    if not chosen:
        raise SystemExit(f"none of {len(traces)} traces will do; raise --problems or --samples")
    return Corpus({problem.problem_id: problem for problem in problems}, chosen)


def _mends_a_step(source: ModelSource, trace: Trace) -> bool:
    spans = step_spans(source.tokens.each(trace.token_ids), source.think_end)
    return len(corrected_units([source.tokens.text(trace.token_ids[span.start : span.end]) for span in spans])) < len(spans)


def _read_texts(arguments: argparse.Namespace, source: ModelSource) -> Corpus:
    rows = [json.loads(line) for line in arguments.texts.read_text().splitlines() if line.strip()][: arguments.problems]
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(key), str) for key in ("prompt", "text")):
            raise SystemExit(f'{arguments.texts}: row {number} has {", ".join(row)}; it needs the texts "prompt" and "text"')
    problems = _prepared([RawProblem(str(number), row["prompt"], "") for number, row in enumerate(rows)], source)
    traces = [
        SelectedTrace(
            **asdict(source.trace(str(number), 0, source.tokens.encode(row["text"])[: arguments.max_tokens], "stop")),
            verdict="correct",
            extracted_answer=None,
            verdict_cause=None,
            thinking_tokens=0,
            answer_tokens=0,
            rank=0,
            num_correct=1,
            num_sampled=1,
        )
        for number, row in enumerate(rows)
    ]
    return Corpus({problem.problem_id: problem for problem in problems}, traces)


def _prepared(raw: Sequence[RawProblem], source: ModelSource) -> list[Problem]:
    return prepare(
        raw,
        tokenizer=load_tokenizer(source.folder),
        context_length=context_length(source.folder),
        instruction="",
        too_long="error",
        key="--problems",
    ).problems


def _draw(source: ModelSource, corpus: Corpus, rewriter: KLBound | Reliable) -> Drawn:
    inputs = {"problems": list(corpus.problems.values()), "selected_traces": corpus.traces}
    steps = ProposeSteps(source, rewriter)(inputs).rows
    verdicts: list[dict[int, Judged]] = [{} for _ in steps]
    asked = list(zip(steps, verdicts, strict=True))
    judging = Judging(Bound(rewriter.kl_bound), rewriter.window_tokens, context_length(source.folder))
    traces = [
        TraceSteps(
            corpus.problems[trace.problem_id].prompt_token_ids,
            trace.token_ids,
            [
                (Span(step.token_start, step.token_end), _ask_all(step.candidates, heard))
                for step, heard in asked
                if step.trace_id == trace.trace_id
            ],
        )
        for trace in corpus.traces
    ]
    judge_steps(WindowScorer(source.scoring_model()), traces, judging)
    return Drawn(steps, verdicts, sum(step.tokens_generated for step in steps))


def _ask_all(candidates: Sequence[Candidate], heard: dict[int, Judged]) -> Rule:
    if candidates:
        judged = yield candidates
        heard.update({candidate.first_draw: one for candidate, one in zip(candidates, judged, strict=True)})
    return Choice(None, 0.0, len(candidates))


def _kept(
    rewriter: KLBound | Reliable, corpus: Corpus, step: StepCandidates, verdicts: Mapping[int, Judged]
) -> Candidate | None:
    rule = rule_of(rewriter, step_text=step.step_text, step_token_ids=_step_ids(corpus, step), candidates=step.candidates)
    return answered(rule, lambda candidate: verdicts[candidate.first_draw]).candidate


def _step_ids(corpus: Corpus, step: StepCandidates) -> list[int]:
    return corpus.trace(step).token_ids[step.token_start : step.token_end]


def _prefix(corpus: Corpus, step: StepCandidates) -> list[int]:
    return [*corpus.problems[step.problem_id].prompt_token_ids, *corpus.trace(step).token_ids[: step.token_start]]


def _stated(source: ModelSource, corpus: Corpus, step: StepCandidates, candidate: Candidate | None) -> Stated | None:
    """Return what is kept of a step up to its result; nothing if it states none."""
    step_ids = _step_ids(corpus, step)
    text, token_ids = (candidate.text, candidate.token_ids) if candidate else (step.step_text, step_ids)
    result = result_of(text)
    if result is None:
        return None
    forced = _tokens_before(source, text, token_ids, result.start())
    shortcut = len(token_ids) < len(step_ids)
    return Stated(
        (*_prefix(corpus, step), *token_ids[:forced]),
        result.group(),
        len(token_ids) - forced,
        shortcut,
        shortcut and text.count("=") < step.step_text.count("="),
    )


def result_of(text: str) -> re.Match[str] | None:
    """Return the last number of a text, at the first place where it follows an equals sign if there is one."""
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    # A result that is said again is decided where it is said first.
    return next((n for n in numbers if n.group() == last.group() and text[: n.start()].rstrip(" $").endswith("=")), last)


def _tokens_before(source: ModelSource, text: str, token_ids: Sequence[int], position: int) -> int:
    """Return how many of a text's tokens end at or before a position in it."""
    for count in range(len(token_ids), 0, -1):
        head = source.tokens.text(token_ids[:count])
        if len(head) <= position and text.startswith(head):
            return count
    return 0


Place = tuple[tuple[int, ...], str]


def _place(stated: Stated) -> Place:
    return stated.prompt_token_ids, stated.result


def _reliabilities(source: ModelSource, stated: Sequence[Stated], arguments: argparse.Namespace) -> dict[Place, float]:
    distinct = list({_place(one): one for one in stated}.values())
    requests = [
        GenerationRequest(
            prompt_token_ids=one.prompt_token_ids,
            max_tokens=one.num_tokens + _MORE_TOKENS,
            temperature=1.0,
            top_p=1.0,
            seed=seed_of("continue", arguments.seed, *one.prompt_token_ids, draw),
            stop_texts=stop_texts(source.think_end),
        )
        for one in distinct
        for draw in range(arguments.continuations)
    ]
    texts = iter([source.tokens.text(generation.token_ids) for generation in source.engine().generate(requests)])
    return {
        _place(one): statistics.mean(_stands(next(texts), one.result) for _ in range(arguments.continuations))
        for one in distinct
    }


def _stands(continuation: str, result: str) -> bool:
    number = _NUMBER.search(continuation)
    return number is not None and number.group() == result


def _shares(reliabilities: Sequence[float], name: str) -> dict[str, float | None]:
    return {
        name: len(reliabilities),
        f"{name}_under_half": round(statistics.mean(one < 0.5 for one in reliabilities), 4) if reliabilities else None,
        f"{name}_mean": round(statistics.mean(reliabilities), 4) if reliabilities else None,
    }


def _table(figures: Mapping[str, Mapping[str, float | None]]) -> RichTable:
    table = RichTable("rule")
    columns = {
        "rewritten": "rewritten",
        "longer": "longer",
        "saved_per_trace": "tokens saved\nper trace",
        "shortcuts": "shortcuts",
        "shortcuts_under_half": "under 50 %",
        "shortcuts_mean": "mean",
        "fewer_equations": "fewer\nequations",
        "fewer_equations_under_half": "under 50 %",
        "fewer_equations_mean": "mean",
        "all_steps": "all\nsteps",
        "all_steps_under_half": "under 50 %",
        "all_steps_mean": "mean",
        "draws": "draws",
    }
    for header in columns.values():
        table.add_column(header, justify="right")
    for name, own in figures.items():
        table.add_row(name, *(_shown(key, own[key]) for key in columns))
    return table


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0%}" if key.endswith(("_half", "_mean")) else f"{value:g}"


if __name__ == "__main__":
    main()
