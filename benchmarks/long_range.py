"""How often does a rewriting pass the bound on its window, and break it further on?

    python -m benchmarks.long_range [--windows 16 32 64] [--model DIR --problems FILE --min-tokens 1000 --windows 512]

The paper takes the KL on the 512 tokens behind a step alone. What each rule accepts on a window is judged once more over the
whole rest of its trace (`check_rest`). Two shares of the accepted rewritings whose trace goes on beyond the window: those
whose KL over the whole rest exceeds the bound, and those whose KL over the part beyond the window does, taken by itself. Both
are means per token, so that in the first the window's own tokens count, too.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.refinement_cases import Case, add_case_arguments, case_settings, make_cases, source_of
from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.engines.checkpoint import context_length
from tokensqueeze.rewriters.decide import rule_of
from tokensqueeze.rewriters.judge_steps import JudgedStep, Judging, TraceSteps, judge_steps
from tokensqueeze.scoring.bounds import Bound
from tokensqueeze.scoring.window_kl import WindowScorer
from tokensqueeze.traces.anatomy import Span

RULES: Mapping[str, KLBound | Reliable] = {"kl_bound": KLBound(), "reliable": Reliable()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_arguments(parser, traces=96, candidates=32, work_dir="runs/long_range")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), help="kl_bound alone draws less")
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 32, 64], help="T, in tokens")
    parser.add_argument("--kl-bound", type=float, default=0.005)
    arguments = parser.parse_args()
    console = Console(width=140)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    settings = case_settings(arguments)
    console.print(f"sampling traces and drawing candidates, or reading them from {arguments.work_dir} …")
    # Draws that are not cut at the step's length serve both rules.
    rules = [RULES[name] for name in arguments.rules]
    cases = make_cases(settings, Reliable() if "reliable" in arguments.rules else KLBound(), arguments.work_dir)
    source = source_of(settings)
    scorer = WindowScorer(source.scoring_model())
    figures: list[dict[str, Any]] = []
    for rewriter in rules:
        for window in arguments.windows:
            judging = Judging(Bound(arguments.kl_bound), window, context_length(source.folder), check_rest=True)
            judged = judge_steps(scorer, [_rules(case, rewriter) for case in cases], judging)
            figures.append({"rule": rewriter.name, "window": window, **broken_further_on(cases, judged, judging)})
    console.print(_table(figures))
    print(json.dumps({"model": arguments.model, "kl_bound": arguments.kl_bound, "rows": figures}))


def broken_further_on(cases: Sequence[Case], judged: Sequence[Sequence[JudgedStep]], judging: Judging) -> dict[str, Any]:
    steps, accepted, longer, over, over_beyond = 0, 0, 0, 0, 0
    for case, own in zip(cases, judged, strict=True):
        for step, one in zip(case.steps, own, strict=True):
            steps += 1
            if one.choice.candidate is None:
                continue
            accepted += 1
            assert one.rest is not None
            rest = len(case.trace.token_ids) - step.token_end
            beyond = rest - judging.window_tokens
            if beyond <= 0:
                continue
            longer += 1
            over += not one.rest.passes
            kl_beyond = one.rest.kl * rest - one.choice.kl * judging.window_tokens
            over_beyond += kl_beyond >= judging.bound.kl_bound * beyond
    return {
        "steps": steps,
        "accepted": accepted,
        "with_more_behind_the_window": longer,
        "over_on_the_rest": over,
        "share_over_on_the_rest": over / longer if longer else None,
        "over_beyond_the_window": over_beyond,
        "share_over_beyond_the_window": over_beyond / longer if longer else None,
    }


def _rules(case: Case, rewriter: KLBound | Reliable) -> TraceSteps:
    def own(step_start: int, step_end: int) -> list[int]:
        return case.trace.token_ids[step_start:step_end]

    steps = [
        (
            Span(step.token_start, step.token_end),
            rule_of(
                rewriter,
                step_text=step.step_text,
                step_token_ids=own(step.token_start, step.token_end),
                candidates=step.candidates,
            ),
        )
        for step in case.steps
    ]
    return TraceSteps(case.problem.prompt_token_ids, case.trace.token_ids, steps)


def _table(figures: Sequence[Mapping[str, Any]]) -> RichTable:
    table = RichTable("rule")
    for header in ("window", "steps", "accepted", "trace goes on", "over ε on the rest", "over ε beyond the window"):
        table.add_column(header, justify="right")
    for row in figures:
        table.add_row(
            row["rule"],
            *(str(row[key]) for key in ("window", "steps", "accepted", "with_more_behind_the_window")),
            _share(row["over_on_the_rest"], row["share_over_on_the_rest"]),
            _share(row["over_beyond_the_window"], row["share_over_beyond_the_window"]),
        )
    return table


def _share(count: int, share: float | None) -> str:
    return "–" if share is None else f"{count} ({100 * share:.1f} %)"


if __name__ == "__main__":
    main()
