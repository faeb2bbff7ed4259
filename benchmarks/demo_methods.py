"""Which method squeezes the demo model best, and what does each part of it do?

    python -m benchmarks.demo_methods [--seeds 2] [--work-dir runs/demo_methods] [--arms NAME …]

All arms learn from one pool of traces, sampled once, and share every table on which they agree. Accuracy, tokens and AUC
are of sampled decoding on held-out problems, differences paired with the base by problem, errors clustered by problem over
all training seeds. They leave out what another pool of traces would change. Killed, it goes on where it was.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable

from tokensqueeze.config import Settings
from tokensqueeze.demo import settings_file, world
from tokensqueeze.methods import settings_from
from tokensqueeze.ray_token import private_ray_token
from tokensqueeze.ray_words import ray_words_to
from tokensqueeze.schema import Decoding, EvaluationTrace
from tokensqueeze.settings_file import read_settings_file

if TYPE_CHECKING:
    from tokensqueeze.pipeline.plan import RunPlan

ADAPTIVE = {"name": "adaptive_depth"}
SHORTEST = {"name": "shortest"}
NONE = {"name": "none"}
KL_BOUND = {"name": "kl_bound"}
SFT = {"name": "sft"}


@dataclass(frozen=True)
class Arm:
    """What an arm changes in the demo's settings."""

    title: str
    method: str
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    gold: world.Policy | None = None
    """Learn from the world's own bare traces instead of the model's."""


ARMS: dict[str, Arm] = {
    "tokensqueeze_reliable": Arm("adaptive + reliable rewriting + DPO-L + SFT", "tokensqueeze_reliable"),
    "tokensqueeze": Arm("adaptive + the paper's rewriting + DPO-L + SFT", "tokensqueeze"),
    "shortest_sft": Arm("shortest + SFT", "shortest_sft"),
    "no_rewrite": Arm("adaptive + DPO-L + SFT", "tokensqueeze", {"rewriter": NONE}),
    "reliable_sft": Arm("adaptive + reliable rewriting + SFT", "tokensqueeze_reliable", {"objective": SFT}),
    "shortest_kl_bound_sft": Arm("shortest + the paper's rewriting + SFT", "shortest_sft", {"rewriter": KL_BOUND}),
    "reliable_shortest_sft": Arm("reliable selection + SFT", "shortest_sft", {"selector": {"name": "reliable_shortest"}}),
    "random_sft": Arm("random correct trace + SFT", "shortest_sft", {"selector": {"name": "random_correct"}}),
    "adaptive_sft": Arm("adaptive + SFT", "shortest_sft", {"selector": ADAPTIVE}),
    "no_length_margin": Arm(
        "adaptive + DPO + SFT (λ = 0)", "tokensqueeze", {"rewriter": NONE, "objective": {"length_weight": 0.0}}
    ),
    "gold_terse": Arm("gold traces, always terse + SFT", "shortest_sft", gold="terse"),
    "gold_worked": Arm("gold traces, always worked out + SFT", "shortest_sft", gold="worked"),
    "gold_mixed": Arm("gold traces, the hard steps worked out + SFT", "shortest_sft", gold="mixed"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="training seeds per arm")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/demo_methods"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    arguments = parser.parse_args()
    console = Console(width=150)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    with private_ray_token(), ray_words_to(arguments.work_dir / "ray.log"):
        figures = measure_arms(arguments.arms, arguments.seeds, arguments.work_dir, console)
    console.print(_table(figures))
    print(json.dumps(figures))


def measure_arms(names: Sequence[str], seeds: int, work_dir: Path, console: Console) -> dict[str, Any]:
    from benchmarks.gold_policies import evaluate_gold_policy
    from tokensqueeze.pipeline.plan import plan_run
    from tokensqueeze.pipeline.ray_session import ray_session
    from tokensqueeze.pipeline.run import run

    figures: dict[str, Any] = {}
    plans = {(name, seed): settings_of(ARMS[name], seed) for name in names for seed in range(seeds)}
    store = work_dir / "tables"
    base: list[EvaluationTrace] = []
    squeezed: dict[str, list[EvaluationTrace]] = {name: [] for name in names}
    first = next(iter(plans.values()))
    with ray_session(None, first.resources, training_workers=first.training.num_workers):
        # Seeds outside, so that a run that is cut short has every arm once.
        for seed in range(seeds):
            for name in names:
                settings, gold = plans[name, seed], ARMS[name].gold
                plan = plan_run(settings, store)
                assert plan.evaluate_base and plan.evaluate_squeezed
                if gold:
                    squeezed[name] += evaluate_gold_policy(settings, gold, store)
                else:
                    run(settings, work_dir / f"{name}-seed{seed}", store=store)
                    squeezed[name] += plan.evaluate_squeezed.output.rows()
                base = base or _base_traces(plan)
                budget = settings.evaluation.token_budget
                figures.setdefault("base", arm_figures(base, base, budget))
                figures[name] = arm_figures(base, squeezed[name], budget) | {"seeds": seed + 1}
                console.print(f"{name}, seed {seed}: {figures[name]['sampled']}", highlight=False)
    return figures


def _base_traces(plan: "RunPlan") -> list[EvaluationTrace]:
    from tokensqueeze.pipeline.planned_tables import write_problems
    from tokensqueeze.stages.run_stage import run_stage

    assert plan.evaluate_base
    write_problems(plan.problem_sets["test"])
    run_stage(plan.evaluate_base, plan.settings.resources.pool("evaluate"), lambda progress: None)
    return plan.evaluate_base.output.rows()


def settings_of(arm: Arm, seed: int) -> Settings:
    """Return the demo's settings with the arm's method and changes."""
    values = read_settings_file(settings_file())
    demo_objective, demo_rewriter = values.pop("objective", {}), values.pop("rewriter", {})
    values["method"] = arm.method
    values["training"] = {**values["training"], "seed": seed}
    # An arm that ruins the model is a finding here: nothing stops it. The weights don't depend on the dev problems.
    values["problems"].pop("dev")
    for section, changes in arm.changes.items():
        values[section] = {**values.get(section, {}), **changes}
    # What the demo tunes goes to every arm that has it: its β to DPO, its draws and window to both rewriters.
    settings = settings_from(values)
    for section, tuned in (("objective", demo_objective), ("rewriter", demo_rewriter)):
        part = getattr(settings, section)
        shared = {key: value for key, value in tuned.items() if key in type(part).model_fields and key != "name"}
        values[section] = {"name": part.name, **shared, **arm.changes.get(section, {})}
    return settings_from(values)


def arm_figures(base: Sequence[EvaluationTrace], traces: Sequence[EvaluationTrace], budget: int) -> dict[str, Any]:
    from tokensqueeze.metrics.evaluation import change, measure

    figures: dict[str, Any] = {}
    decodings: tuple[Decoding, ...] = ("sampled", "greedy")
    for decoding in decodings:
        own_base = [trace for trace in base if trace.decoding == decoding]
        own = [trace for trace in traces if trace.decoding == decoding]
        cell, difference = measure(own, budget), change(own_base, own, budget)
        figures[decoding] = {
            "accuracy": round(cell.accuracy, 4),
            "accuracy_change": round(difference.accuracy, 4),
            "accuracy_change_se": _rounded(difference.accuracy_se),
            "tokens": round(cell.length_all, 1),
            "length_ratio": round(difference.length_ratio, 4),
            "auc": round(cell.auc, 4),
            "auc_change": round(difference.auc, 4),
            "auc_change_se": _rounded(difference.auc_se),
            "one_shot_share": _rounded(one_shot_share([trace.text for trace in own])),
        }
    return figures


def one_shot_share(texts: Sequence[str]) -> float | None:
    """Return how many of the hard steps are written in one shot, of those written in one shot or worked out."""
    one_shot = worked = 0
    for text in texts:
        for step in text.split("\n\n"):
            if step.startswith(("Wait", "Hmm", "Let me")):
                continue  # a re-check, not the step itself
            if re.search(r"= \d+, \d+ [-+] \d+ = ", step):
                worked += 1
            elif re.search(r"\d+(?: [-+] \d+){2,} = ", step):
                one_shot += 1
    return one_shot / (one_shot + worked) if one_shot + worked else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _table(figures: dict[str, Any]) -> RichTable:
    table = RichTable()
    for header in ("arm", "acc T 0.7", "Δ", "tokens", "AUC", "Δ AUC", "one-shot share", "greedy acc / tokens"):
        table.add_column(header, justify="left" if header == "arm" else "right", no_wrap=True)
    for name, both in figures.items():
        sampled, greedy = both["sampled"], both["greedy"]
        table.add_row(
            "base" if name == "base" else ARMS[name].title,
            f"{100 * sampled['accuracy']:.1f}",
            "–" if name == "base" else f"{100 * sampled['accuracy_change']:+.1f} ± {100 * sampled['accuracy_change_se']:.1f}",
            f"{sampled['tokens']:.1f}",
            f"{sampled['auc']:.3f}",
            "–" if name == "base" else f"{sampled['auc_change']:+.3f} ± {sampled['auc_change_se']:.3f}",
            "–" if sampled["one_shot_share"] is None else f"{sampled['one_shot_share']:.2f}",
            f"{100 * greedy['accuracy']:.1f} / {greedy['tokens']:.1f}",
        )
    return table


if __name__ == "__main__":
    main()
