"""What does scoring candidates by KL cost, against scoring them one by one, and against the least that any exact method can do?

    python -m benchmarks.refine_scoring [--model DIR --problems FILE --min-tokens 1000 --max-tokens 1400] [--work-dir DIR]

Traces, steps and K = 64 draws per step, not cut at the step's length, come from the model itself. In one run, on the same
draws: the package's scorer under each rule; one whole forward pass per draw (naive); all draws of a step in one padded
batch (padded). Naive and padded may be timed on some of the steps: their seconds per draw are then taken for all.
`time_over_limit` is the scorer's time over that of plain forward passes, logits included, over as many tokens as any exact
method must read: each trace once, and each candidate that the rule needs a verdict on with its window up to the position
that decides. Steps are single ones for both rules.

The second table takes the measured tokens per step to a 7B model and 10,000 traces of 3,600 tokens: what one H100 would need
at its limit of arithmetic (989 TFLOP/s in bf16, two operations a parameter and token), and at 40 % of it. That is arithmetic;
no GPU ran. In a run, draws for `kl_bound` stop at the step's length and cost less.

Peak memory is that of a process of its own with a vocabulary of 152 k, a trace of 9 k tokens and 64 candidates of which none
fails, over the peak of one forward pass over that trace with the logits of one position; weights are in both, and taken off
both for `peak_memory_ratio_over_weights`; `peak_memory_ratio_all_logits` is over a forward pass that gives all its logits.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.naive_scoring import one_by_one, padded
from benchmarks.refinement_cases import Case, add_case_arguments, case_settings, make_cases, source_of
from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.engines.checkpoint import context_length
from tokensqueeze.rewriters.choice import Choice, Judged, Rule, answered
from tokensqueeze.rewriters.decide import rule_of
from tokensqueeze.rewriters.judge_steps import Judging, TraceSteps, judge_steps
from tokensqueeze.schema import StepCandidates
from tokensqueeze.scoring.bounds import Bound
from tokensqueeze.scoring.branches import ReadTrace
from tokensqueeze.scoring.window_kl import Window, WindowScorer
from tokensqueeze.traces.anatomy import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RULES = (KLBound(), Reliable())
Score = Callable[["PreTrainedModel", Sequence[int], Span, Sequence[Sequence[int]], int], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_arguments(parser, traces=12, candidates=64, work_dir="runs/refine_scoring")
    parser.add_argument("--window", type=int, default=64, help="T, in tokens")
    parser.add_argument("--kl-bound", type=float, default=0.005)
    parser.add_argument("--compared-steps", type=int, default=60, help="steps on which naive and padded are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory measurement out")
    parser.add_argument("--measure-memory", choices=["weights", "forward", "all logits", "scorer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        print(json.dumps({"bytes": peak_bytes(arguments.measure_memory)}))
        return
    console = Console(width=140)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    figures = measure(arguments, console)
    console.print(_table(figures))
    console.print(_projection(figures))
    # The paper's rule is the one that others' figures are about.
    headline = ("speedup_vs_naive", "speedup_vs_padded", "same_choices", "time_over_limit")
    result = {name: figures["kl_bound"][name] for name in headline}
    result["same_choices"] = all(rule["same_choices"] for rule in figures.values())
    memory = {"peak_memory_ratio": None} if arguments.no_memory else peak_memory(console)
    print(json.dumps({**result, **memory, "rules": figures}))


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Return each rule's figures."""
    settings = case_settings(arguments, dtype=arguments.dtype)
    console.print(f"sampling traces and drawing candidates, or reading them from {arguments.work_dir} …")
    cases = make_cases(settings, Reliable(), arguments.work_dir)
    source = source_of(settings)
    model = source.scoring_model()
    judging = Judging(Bound(arguments.kl_bound), arguments.window, context_length(source.folder))
    steps = [(case, step) for case in cases for step in case.steps]
    spread = max(1, len(steps) // arguments.compared_steps)
    compared = list(range(0, len(steps), spread))[: arguments.compared_steps]
    per_draw: dict[str, float] = {}
    choices: dict[tuple[str, str], list[Choice]] = {}
    for name, score in (("naive", one_by_one), ("padded", padded)):
        scored = [_by(score, model, *steps[number], judging) for number in compared]
        seconds = sum(spent for spent, _ in scored)
        draws = sum(candidate.draws for number in compared for candidate in steps[number][1].candidates)
        per_draw[name] = seconds / draws
        for rule in RULES:
            choices[name, rule.name] = [
                _choice(*steps[number], rule, verdicts) for number, (_, verdicts) in zip(compared, scored, strict=True)
            ]
        console.print(f"{name}: {len(compared)} steps, {draws} draws in {seconds:.1f} s")
    rate = statistics.median(_plain_rate(model, cases) for _ in range(arguments.repeats))
    console.print(f"plain forward passes: {rate:,.0f} tokens/s")

    figures: dict[str, Any] = {}
    for rule in RULES:
        seconds, own, counter = _scored_together(model, cases, rule, judging, arguments.repeats)
        same = all(
            _kept(own[number]) == _kept(other)
            for name in per_draw
            for number, other in zip(compared, choices[name, rule.name], strict=True)
        )
        draws = sum(case.num_draws for case in cases)
        console.print(f"{rule.name}: {len(steps)} steps, {draws} draws in {seconds:.2f} s, the same choices: {same}")
        figures[rule.name] = {
            "steps": len(steps),
            "draws": draws,
            "distinct": sum(len(step.candidates) for _, step in steps),
            "scored": sum(choice.num_scored for choice in own),
            "compared_steps": len(compared),
            "mean_trace_tokens": round(statistics.mean(case.trace.num_tokens for case in cases)),
            "mean_step_tokens": round(statistics.mean(step.token_end - step.token_start for _, step in steps), 1),
            "ms_per_step": round(1000 * seconds / len(steps), 3),
            "speedup_vs_naive": round(per_draw["naive"] * draws / seconds, 2),
            "speedup_vs_padded": round(per_draw["padded"] * draws / seconds, 2),
            "same_choices": same,
            "tokens_generated": sum(step.tokens_generated for _, step in steps),
            "tokens_read": counter.tokens_read,
            "tokens_needed": counter.least_tokens,
            "tokens_in_traces": sum(len(case.problem.prompt_token_ids) + case.trace.num_tokens for case in cases),
            "plain_tokens_per_second": round(rate),
            "time_over_limit": round(seconds * rate / counter.least_tokens, 3),
        }
    return figures


def _scored_together(
    model: "PreTrainedModel", cases: Sequence[Case], rule: KLBound | Reliable, judging: Judging, repeats: int
) -> tuple[float, list[Choice], "_Counter"]:
    """Return the median seconds of the package's scorer, each step's choice, and what was read."""
    seconds, choices, counter = [], [], _Counter(model)
    for _ in range(repeats):
        counter = _Counter(model)
        started = _now(model)
        judged = judge_steps(counter, [_rules(case, rule) for case in cases], judging)
        seconds.append(_now(model) - started)
        choices = [one.choice for trace in judged for one in trace]
    return statistics.median(seconds), choices, counter


class _Counter(WindowScorer):
    """Counts what had to be read: each trace, and of each candidate what decides."""

    def __init__(self, model: "PreTrainedModel"):
        super().__init__(model)
        self.least_tokens = 0

    def read_trace(self, token_ids: Sequence[int], *, with_entropy: bool = False) -> ReadTrace:
        self.least_tokens += len(token_ids)
        return super().read_trace(token_ids, with_entropy=with_entropy)

    def advance(self) -> list[Window]:
        finished = super().advance()
        self.least_tokens += sum(len(window.candidate) + _decisive(window) - 1 for window in finished)
        return finished


def _decisive(window: Window) -> int:
    """Return how many positions of the window decide."""
    reached = accumulate(window.kl_by_position)
    return next((done for done, kl in enumerate(reached, start=1) if kl >= window.limit), window.num_tokens)


def _rules(case: Case, rewriter: KLBound | Reliable) -> TraceSteps:
    steps = [(Span(step.token_start, step.token_end), _rule(case, step, rewriter)) for step in case.steps]
    return TraceSteps(case.problem.prompt_token_ids, case.trace.token_ids, steps)


def _rule(case: Case, step: StepCandidates, rewriter: KLBound | Reliable) -> Rule:
    own = case.trace.token_ids[step.token_start : step.token_end]
    return rule_of(rewriter, step_text=step.step_text, step_token_ids=own, candidates=step.candidates)


def _choice(case: Case, step: StepCandidates, rule: KLBound | Reliable, verdicts: Mapping[int, Judged]) -> Choice:
    return answered(_rule(case, step, rule), lambda candidate: verdicts[candidate.first_draw])


def _by(
    score: Score, model: "PreTrainedModel", case: Case, step: StepCandidates, judging: Judging
) -> tuple[float, dict[int, Judged]]:
    """Score every draw, repeated ones too; return the seconds that took, and the verdicts."""
    token_ids = [*case.problem.prompt_token_ids, *case.trace.token_ids]
    offset = len(case.problem.prompt_token_ids)
    span = Span(offset + step.token_start, offset + step.token_end)
    num_tokens = min(judging.window_tokens, len(token_ids) - span.end)
    draws = [candidate for candidate in step.candidates for _ in range(candidate.draws)]
    started = _now(model)
    sums = score(model, token_ids, span, [draw.token_ids for draw in draws], judging.window_tokens)
    seconds = _now(model) - started
    bound = judging.bound
    return seconds, {
        draw.first_draw: Judged(bound.reduced(kl, num_tokens), passes=not num_tokens or kl < bound.kl_bound * num_tokens)
        for draw, kl in zip(draws, sums, strict=True)
    }


def _kept(choice: Choice) -> int | None:
    return choice.candidate.first_draw if choice.candidate else None


@torch.inference_mode()
def _plain_rate(model: "PreTrainedModel", cases: Sequence[Case]) -> float:
    """Return tokens per second of forward passes over the traces, each as a batch of about 2,048 tokens."""
    texts = [[*case.problem.prompt_token_ids, *case.trace.token_ids] for case in cases]
    batches = [torch.tensor([text] * max(1, 2048 // len(text)), device=model.device) for text in texts]
    model(input_ids=batches[0], use_cache=False)
    started = _now(model)
    for batch in batches:
        model(input_ids=batch, use_cache=False)
    return sum(batch.numel() for batch in batches) / (_now(model) - started)


def _now(model: "PreTrainedModel") -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(console: Console) -> dict[str, float]:
    peaks: dict[str, int] = {}
    for what in ("weights", "forward", "all logits", "scorer"):
        command = [sys.executable, "-m", "benchmarks.refine_scoring", "--measure-memory", what]
        peaks[what] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["bytes"]
        console.print(f"peak memory, {what}: {peaks[what] / 2**30:.2f} GiB{'' if what == 'weights' else ', weights included'}")
    over = {what: peak - peaks["weights"] for what, peak in peaks.items()}
    return {
        "peak_memory_ratio": round(peaks["scorer"] / peaks["forward"], 3),
        "peak_memory_ratio_over_weights": round(over["scorer"] / over["forward"], 3),
        "peak_memory_ratio_all_logits": round(peaks["scorer"] / peaks["all logits"], 3),
    }


@torch.inference_mode()
def peak_bytes(what: str) -> int:
    """Return how much this process's memory grew, at its peak, for the model alone, with one forward pass, or 64 candidates."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = Qwen3Config(
        vocab_size=152_000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=10_240,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    token_ids = torch.randint(0, config.vocab_size, (9000,)).tolist()
    if what in ("forward", "all logits"):
        model(input_ids=torch.tensor([token_ids]), logits_to_keep=1 if what == "forward" else 0)
    elif what == "scorer":
        scorer = WindowScorer(model)
        trace = scorer.read_trace(token_ids)
        span = Span(8400, 8440)
        windows = [Window(trace, span, torch.randint(0, config.vocab_size, (30,)).tolist(), 512) for _ in range(64)]
        for window in windows:
            scorer.add(window)
        while not all(window.finished for window in windows):
            scorer.advance()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def gpu_hours(tokens: float, *, share_of_limit: float) -> float:
    """Return the hours that a 7.6 B model takes for its arithmetic on so many tokens, on one H100."""
    return tokens * 2 * 7.6e9 / (share_of_limit * 989e12) / 3600


def _projection(figures: dict[str, Any]) -> RichTable:
    table = RichTable("10,000 traces of 3,600 tokens, 7B")
    for header in ("steps a trace", "generated a trace", "scored a trace", "GPU-hours at the limit", "at 40 %"):
        table.add_column(header, justify="right")
    for name, own in figures.items():
        steps = 3600 / own["mean_step_tokens"]
        generated = steps * own["tokens_generated"] / own["steps"]
        traces = own["tokens_in_traces"]
        scored = 3600 + steps * (own["tokens_read"] - traces) / own["steps"]
        own["generated_per_trace_7b"], own["scored_per_trace_7b"] = round(generated), round(scored)
        hours = [gpu_hours(10_000 * (generated + scored), share_of_limit=share) for share in (1.0, 0.4)]
        own["gpu_hours_at_40_percent"] = round(hours[1], 1)
        table.add_row(name, f"{steps:.0f}", f"{generated:,.0f}", f"{scored:,.0f}", f"{hours[0]:.0f}", f"{hours[1]:.0f}")
    return table


def _table(figures: dict[str, Any]) -> RichTable:
    table = RichTable("rule")
    for header in ("steps", "draws", "distinct", "scored", "ms/step", "× naive", "× padded", "same", "× limit"):
        table.add_column(header, justify="right")
    for name, own in figures.items():
        table.add_row(
            name,
            *(f"{own[key]:,}" for key in ("steps", "draws", "distinct", "scored")),
            f"{own['ms_per_step']:.2f}",
            f"{own['speedup_vs_naive']:.1f}",
            f"{own['speedup_vs_padded']:.1f}",
            "yes" if own["same_choices"] else "no",
            f"{own['time_over_limit']:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
