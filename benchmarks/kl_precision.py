"""What does bfloat16 do to a KL bound of 0.005?

    python -m benchmarks.kl_precision [--model DIR --problems FILE --min-tokens 1000 --max-tokens 1400 --window 512]

The same traces and draws are scored by the model in float32, in bfloat16 as the package does it (logits, softmax and sums in
float32) and in bfloat16 with the logits rounded to it as well. A verdict (a candidate passes
or fails) or a choice (what a rule keeps of a step) *flips* where it differs from float32. Errors are those of candidates
near the bound: with a float32 KL between half and twice it. The noise floor is the KL that a step gets when it is read as
its own rewriting, exactly zero but for rounding. On some of the steps float32 itself is held against float64 (norms, too).
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.full_scores import ScoredStep, score_in_full
from benchmarks.refinement_cases import Case, add_case_arguments, case_settings, make_cases, source_of
from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.scoring import window_kl
from tokensqueeze.scoring.window_kl import WindowScorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tokensqueeze.stages.model_source import ModelSource


@dataclass(frozen=True)
class Precision:
    dtype: str
    rounded_logits: bool = False


PRECISIONS: Mapping[str, Precision] = {
    "bfloat16": Precision("bfloat16"),
    "bfloat16, logits too": Precision("bfloat16", rounded_logits=True),
}

RULES: Mapping[str, KLBound | Reliable] = {"kl_bound": KLBound(), "reliable": Reliable()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_arguments(parser, traces=48, candidates=32, work_dir="runs/kl_precision")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), help="kl_bound alone draws less")
    parser.add_argument("--window", type=int, default=64, help="T, in tokens")
    parser.add_argument("--kl-bounds", type=float, nargs="+", default=[0.0005, 0.005, 0.05])
    parser.add_argument("--float64-traces", type=int, default=8, help="traces on which float32 is held against float64")
    arguments = parser.parse_args()
    console = Console(width=160)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    settings = case_settings(arguments)
    console.print(f"sampling traces and drawing candidates, or reading them from {arguments.work_dir} …")
    # Draws that are not cut at the step's length serve both rules.
    rules = [RULES[name] for name in arguments.rules]
    cases = make_cases(settings, Reliable() if "reliable" in arguments.rules else KLBound(), arguments.work_dir)
    source = source_of(settings)

    def scored(name: str, precision: Precision, some: Sequence[Case]) -> list[ScoredStep]:
        started = time.perf_counter()
        with _logits(precision):
            steps = score_in_full(WindowScorer(_model(source, precision)), some, arguments.window)
        candidates = sum(len(step.kl) for step in steps)
        spent = time.perf_counter() - started
        console.print(f"{name}: {len(some)} traces, {len(steps)} steps, {candidates} distinct candidates in {spent:.1f} s")
        return steps

    few = cases[: arguments.float64_traces]
    exact = scored("float64", Precision("float64"), few)
    reference = scored("float32", Precision("float32"), cases)
    figures = [
        {"precision": "float32", "against": "float64", **compare(exact, reference[: len(exact)], rules, bound)}
        for bound in arguments.kl_bounds
    ]
    for name, precision in PRECISIONS.items():
        own = scored(name, precision, cases)
        figures += [
            {"precision": name, "against": "float32", **compare(reference, own, rules, bound)} for bound in arguments.kl_bounds
        ]
    console.print(_table(figures))
    print(json.dumps({"model": arguments.model, "window": arguments.window, "rows": figures}))


def compare(
    reference: Sequence[ScoredStep], other: Sequence[ScoredStep], rules: Sequence[KLBound | Reliable], kl_bound: float
) -> dict[str, Any]:
    """Return how the verdicts, the choices and the KL of the same steps differ; KL in nats per token."""
    pairs = list(zip(reference, other, strict=True))
    verdicts = [verdict for one, two in pairs for verdict in zip(one.passes(kl_bound), two.passes(kl_bound), strict=True)]
    errors = [
        after - before
        for one, two in pairs
        for before, after in zip(one.kl_per_token(), two.kl_per_token(), strict=True)
        if kl_bound / 2 <= before <= 2 * kl_bound
    ]
    floor = [two.own_kl / two.num_tokens for two in other if two.num_tokens]
    return {
        "kl_bound": kl_bound,
        "verdicts": len(verdicts),
        "flips_to_fail": sum(before and not after for before, after in verdicts),
        "flips_to_pass": sum(after and not before for before, after in verdicts),
        "near_bound": len(errors),
        "bias_near_bound": mean(errors) if errors else None,
        "median_error_near_bound": median(map(abs, errors)) if errors else None,
        "p95_error_near_bound": _quantile([abs(error) for error in errors], 0.95),
        "median_noise_floor": median(floor),
        "p95_noise_floor": _quantile(floor, 0.95),
        "steps": len(pairs),
        "rules": {rewriter.name: _choices(pairs, rewriter, kl_bound) for rewriter in rules},
    }


def _choices(pairs: Sequence[tuple[ScoredStep, ScoredStep]], rewriter: KLBound | Reliable, kl_bound: float) -> dict[str, float]:
    flips, tokens, saved_before, saved_after = 0, 0, 0, 0
    for one, two in pairs:
        before, after = one.choice(rewriter, kl_bound).candidate, two.choice(rewriter, kl_bound).candidate
        flips += before != after
        tokens += one.num_step_tokens
        saved_before += one.num_step_tokens - len(before.token_ids) if before else 0
        saved_after += one.num_step_tokens - len(after.token_ids) if after else 0
    return {
        "flipped_choices": flips,
        "step_tokens_saved_reference": round(saved_before / tokens, 4),
        "step_tokens_saved": round(saved_after / tokens, 4),
    }


def _model(source: "ModelSource", precision: Precision) -> "PreTrainedModel":
    model = replace(source, dtype=precision.dtype).scoring_model()
    if precision.dtype == "float64":
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                # transformers' own go through float32.
                module.forward = _ExactNorm(module)
    return model


def _logits(precision: Precision) -> AbstractContextManager[Any]:
    if not precision.rounded_logits:
        return nullcontext()
    return patch.object(window_kl, "full_logits", lambda head, hidden: head(hidden).float())


class _ExactNorm:
    """RMSNorm in its input's own type."""

    def __init__(self, norm: Any):
        self._weight, self._epsilon = norm.weight, norm.variance_epsilon

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self._epsilon)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return torch.tensor(values, dtype=torch.float64).quantile(share).item() if values else None


def _table(figures: Sequence[dict[str, Any]]) -> RichTable:
    caption = "flips: of verdicts, and which way; bias, errors, floor: nats per token; under a rule's name: choices that flip"
    table = RichTable(caption=caption)
    for header in ("precision", "against"):
        table.add_column(header, no_wrap=True)
    errors = ("near ε", "bias", "median error", "95 %", "floor", "95 %")
    for header in ("ε", "flips", "fail/pass", *errors, *figures[0]["rules"]):
        table.add_column(header, justify="right", no_wrap=True)
    for row in figures:
        flips = row["flips_to_fail"] + row["flips_to_pass"]
        table.add_row(
            row["precision"],
            row["against"],
            f"{row['kl_bound']:g}",
            f"{flips}/{row['verdicts']}",
            f"{row['flips_to_fail']}/{row['flips_to_pass']}",
            str(row["near_bound"]),
            *(_nats(row[key]) for key in ("bias_near_bound", "median_error_near_bound", "p95_error_near_bound")),
            *(_nats(row[key]) for key in ("median_noise_floor", "p95_noise_floor")),
            *(f"{rule['flipped_choices']}/{row['steps']}" for rule in row["rules"].values()),
        )
    return table


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    main()
