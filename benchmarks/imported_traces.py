"""What do traces that were sampled elsewhere come to here: do verdicts agree with their own, and what is there to learn from?

    python -m benchmarks.imported_traces --traces FILE.jsonl --tokenizer MODEL_DIR

The file needs a column with its own verdict (1 or 0). Every disagreement is printed, to be looked at. Then pass rates, what the
adaptive selection keeps at several alphas, the pairs that follow, and accuracy, lengths and AUC at several budgets, all in
tokens of the tokenizer given. The last line is JSON.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from tokensqueeze.config import AdaptiveDepth, EngineSettings, NoRewrite, PairingSettings, TraceSource, VerifierSettings
from tokensqueeze.engines.checkpoint import load_tokenizer
from tokensqueeze.metrics.evaluation import measure
from tokensqueeze.metrics.token_budget import budget_curve
from tokensqueeze.pipeline.import_traces import read_trace_file, read_traces
from tokensqueeze.problems.prompts import prepare
from tokensqueeze.problems.table_file import open_rows
from tokensqueeze.schema import EvaluationTrace, PreferencePair, Problem, RefinedTrace, VerifiedTrace
from tokensqueeze.stages.accept_steps import AcceptSteps
from tokensqueeze.stages.build_pairs import BuildPairs
from tokensqueeze.stages.evaluate_imported import EvaluateImported
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.select_traces import SelectTraces

ALPHAS = (0.0, 0.1, 0.2, 0.5, 1.0)
BUDGETS = (256, 512, 1024, 2048, 4096)
PASS_RATES = ((0.0, 0.0), (0.0, 0.1), (0.1, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0))


@dataclass(frozen=True)
class Disagreement:
    trace_id: str
    gold_answer: str
    extracted_answer: str | None
    ours: str
    theirs: str


def main() -> None:
    arguments = _arguments()
    source = TraceSource(
        path=str(arguments.traces),
        question_column=arguments.question_column,
        response_column=arguments.response_column,
        gold_column=arguments.gold_column,
        sample_column=arguments.sample_column,
    )
    model = ModelSource(arguments.tokenizer.absolute(), EngineSettings(), "float32", arguments.think_end)
    verifier = VerifierSettings(answer_forms=arguments.answer_form or ["answer_tag", "boxed"])
    started = time.monotonic()
    problems = _problems(source, model)
    imported = [trace for _, trace in read_traces(source, key="traces")]
    done = EvaluateImported(model, verifier)({"problems": problems, "imported_traces": imported})
    seconds = time.monotonic() - started
    print(f"{len(done.rows):,} traces of {len(problems)} problems, imported and verified in {seconds:.1f} s")
    for note, count in done.counts.items():
        print(f"  {count:,} {note}")
    figures = {"traces": len(done.rows), "problems": len(problems), "seconds": round(seconds, 1), "counts": dict(done.counts)}
    figures |= _agreement(done.rows, problems, _their_verdicts(source, arguments.verdict_column))
    figures["pass_rates"] = _pass_rates(done.rows)
    figures["selection"] = _selection(done.rows, problems, model)
    figures |= _measures(done.rows)
    print(json.dumps(figures))


def _problems(source: TraceSource, model: ModelSource) -> list[Problem]:
    return prepare(
        read_trace_file(source, key="traces").problems,
        tokenizer=load_tokenizer(model.folder),
        context_length=model.context_length,
        instruction="",
        too_long="error",
        key="traces",
    ).problems


def _their_verdicts(source: TraceSource, column: str) -> dict[str, bool]:
    """Return the file's own verdicts by trace id."""
    rows = open_rows(Path(source.path), container=None, key="traces")
    read = zip(rows, read_traces(source, key="traces"), strict=True)
    return {f"{trace.problem_id}/{trace.sample_index}": bool(row.values[column]) for row, (_, trace) in read}


def _agreement(traces: Sequence[EvaluationTrace], problems: Sequence[Problem], theirs: Mapping[str, bool]) -> dict[str, Any]:
    gold = {problem.problem_id: problem.gold_answer for problem in problems}
    table: Counter[tuple[str, str]] = Counter()
    disagreements = []
    for trace in traces:
        own = "correct" if theirs[trace.trace_id] else "not correct"
        table[trace.verdict, own] += 1
        if (trace.verdict == "correct") != theirs[trace.trace_id]:
            disagreements.append(
                Disagreement(trace.trace_id, gold[trace.problem_id], trace.extracted_answer, trace.verdict, own)
            )
    agreement = 1 - len(disagreements) / len(traces)
    print("\n| our verdict | theirs: correct | theirs: not correct |\n|---|---:|---:|")
    for verdict in dict.fromkeys(verdict for verdict, _ in sorted(table)):
        print(f"| {verdict} | {table[verdict, 'correct']:,} | {table[verdict, 'not correct']:,} |")
    print(f"\nagreement: {agreement:.2%}; {len(disagreements)} disagreements:")
    print("\n| trace | gold answer | extracted answer | ours | theirs |\n|---|---|---|---|---|")
    for each in disagreements:
        print(f"| {each.trace_id} | `{each.gold_answer}` | `{each.extracted_answer}` | {each.ours} | {each.theirs} |")
    return {"agreement": round(agreement, 5), "disagreements": [asdict(each) for each in disagreements]}


def _pass_rates(traces: Sequence[EvaluationTrace]) -> dict[str, int]:
    by_problem: dict[str, list[bool]] = defaultdict(list)
    for trace in traces:
        by_problem[trace.problem_id].append(trace.verdict == "correct")
    rates = [fmean(correct) for correct in by_problem.values()]
    counts = {
        "0" if high == 0 else f"{low:g} to {high:g}": sum(low < rate <= high or rate == high == 0 for rate in rates)
        for low, high in PASS_RATES
    }
    print("\n| pass rate, over … up to | problems |\n|---|---:|")
    for name, count in counts.items():
        print(f"| {name} | {count} |")
    return counts


def _selection(traces: Sequence[EvaluationTrace], problems: Sequence[Problem], model: ModelSource) -> dict[str, Any]:
    """Select and pair with the run's own stages, at every alpha."""
    names = [field.name for field in fields(VerifiedTrace)]
    verified = [VerifiedTrace(**{name: getattr(trace, name) for name in names}) for trace in traces]
    correct = fmean(trace.num_tokens for trace in verified if trace.verdict == "correct")
    print(f"\ncorrect traces: {correct:.0f} tokens on average")
    print("\n| alpha | selected | of problems | tokens | pairs | problems with pairs | chosen tokens | rejected tokens |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    found: dict[str, Any] = {}
    for alpha in ALPHAS:
        selected = SelectTraces(AdaptiveDepth(alpha=alpha))({"verified_traces": verified}).rows
        inputs: dict[str, list[Any]] = {"problems": list(problems), "verified_traces": verified}
        refined: list[RefinedTrace] = AcceptSteps(model, NoRewrite())(
            inputs | {"selected_traces": selected, "step_candidates": []}
        ).rows
        pairs: list[PreferencePair] = BuildPairs(PairingSettings(), with_rejected=True)(
            inputs | {"refined_traces": refined}
        ).rows
        own = {
            "selected": len(selected),
            "problems": len({trace.problem_id for trace in selected}),
            "tokens": round(fmean(trace.num_tokens for trace in selected), 1),
            "pairs": len(pairs),
            "problems_with_pairs": len({pair.problem_id for pair in pairs}),
            "chosen_tokens": round(fmean(pair.chosen_num_tokens for pair in pairs), 1),
            "rejected_tokens": round(fmean(pair.rejected_num_tokens or 0 for pair in pairs), 1),
        }
        print(f"| {alpha:g} | " + " | ".join(f"{value:,}" for value in own.values()) + " |")
        found[f"{alpha:g}"] = own
    return found


def _measures(traces: Sequence[EvaluationTrace]) -> dict[str, Any]:
    cells = {budget: measure(traces, budget) for budget in BUDGETS}
    cell = cells[BUDGETS[-1]]
    curve = budget_curve(traces, BUDGETS)
    print(f"\naccuracy {cell.accuracy:.1%} {_interval(cell.accuracy_ci)}, Len-A {cell.length_all:.0f}, ", end="")
    print(f"Len-T {cell.length_correct or 0:.0f}, thinking {cell.thinking_length:.0f}, answer {cell.answer_length:.0f} tokens")
    print("pass@k: " + ", ".join(f"{k}: {value.value:.1%}" for k, value in cell.pass_at_k.items()))
    print("\n| budget B, tokens | AUC, % | 95 % interval | accuracy within B, % | 95 % interval |\n|---:|---:|---|---:|---|")
    for budget, accuracy, interval in zip(BUDGETS, curve.accuracy, curve.intervals, strict=True):
        own = cells[budget]
        print(
            f"| {budget:,} | {own.auc:.1%} | {_interval(own.auc_ci)} | {accuracy:.1%} | {_interval(interval)} |".replace(
                "%", ""
            )
        )
    return {
        "accuracy": cell.accuracy,
        "accuracy_ci": cell.accuracy_ci,
        "length_all": round(cell.length_all, 1),
        "length_correct": round(cell.length_correct or 0, 1),
        "auc": {budget: round(own.auc, 5) for budget, own in cells.items()},
        "pass_at_k": {k: round(value.value, 5) for k, value in cell.pass_at_k.items()},
    }


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "–"
    low, high = interval
    return f"{low:.1%} to {high:.1%}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a model directory; its tokenizer and chat template are used"
    )
    parser.add_argument("--question-column", default="question")
    parser.add_argument("--response-column", default="response")
    parser.add_argument("--gold-column", default="expected_answer")
    parser.add_argument("--sample-column", default="sample_idx")
    parser.add_argument("--verdict-column", default="score")
    parser.add_argument("--answer-form", action="append")
    parser.add_argument("--think-end", default="</think>")
    return parser.parse_args()


if __name__ == "__main__":
    main()
