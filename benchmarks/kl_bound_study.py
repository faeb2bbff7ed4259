"""Should the KL bound be a constant, or scale with how uncertain the model is? Which one breaks less for the tokens it saves?

    python -m benchmarks.kl_bound_study [--traces 288] [--samples 8] [--work-dir runs/kl_bound_study]

Each problem's shortest correct trace of the demo's model is rewritten by both rules, from the same draws, under ε in nats per
token (`constant`) and under ε times the entropy of the original's predictions (`entropy`), over a sweep of ε. What they
break is found by a parser (`benchmarks.demo_audit`) and counted per 100 traces: false equations, those of them that stand,
and lost values. Steps are rewritten independently: one may become false because a re-check behind it repairs it, while that
re-check is rewritten as well. Points of the sweep are joined by straight lines, and the two bounds compared at equal tokens
saved; ± is one standard error over traces, by resampling them. One-shot share: hard steps left in one shot, which the model
often gets wrong elsewhere.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.demo_audit import audit
from benchmarks.demo_methods import one_shot_share
from benchmarks.full_scores import ScoredStep, score_in_full
from benchmarks.refinement_cases import Case, CaseSettings, make_cases, source_of
from tokensqueeze.config import KLBound, ModelSettings, Reliable
from tokensqueeze.scoring.bounds import BoundScale
from tokensqueeze.scoring.window_kl import WindowScorer
from tokensqueeze.verifiers.boxed import last_boxed

SWEEPS: Mapping[BoundScale, Sequence[float]] = {
    "constant": [10**power for power in np.arange(-6, 1.01, 0.5).tolist()],
    "entropy": [10**power for power in np.arange(-4.5, 2.51, 0.5).tolist()],
}
LEVELS = 10
"""Places at which the bounds are compared, evenly spread over the savings that both reach."""
BROKEN = ("false_equations", "standing_equations", "lost_values")


@dataclass(frozen=True)
class Rewritten:
    """What a rule makes of one trace."""

    steps: list[str]
    tokens: int
    tokens_saved: int
    steps_rewritten: int
    false_equations: int
    standing_equations: int
    lost_values: int


@dataclass(frozen=True)
class Point:
    """A rule under one bound, on all traces."""

    scale: BoundScale
    kl_bound: float
    traces: list[Rewritten]

    def figures(self) -> dict[str, Any]:
        texts = ["\n\n".join(trace.steps) for trace in self.traces]
        return {
            "scale": self.scale,
            "kl_bound": self.kl_bound,
            "tokens_saved": sum(trace.tokens_saved for trace in self.traces) / sum(trace.tokens for trace in self.traces),
            "steps_rewritten": sum(t.steps_rewritten for t in self.traces) / sum(len(t.steps) for t in self.traces),
            **{f"{name}_per_100": 100 * sum(getattr(t, name) for t in self.traces) / len(texts) for name in BROKEN},
            "one_shot_share": one_shot_share(texts),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=288, help="problems, one trace each")
    parser.add_argument("--samples", type=int, default=8, help="traces sampled per problem, to take the shortest correct of")
    parser.add_argument("--candidates", type=int, default=32, help="K, draws per step")
    parser.add_argument("--window", type=int, default=64, help="T, in tokens")
    parser.add_argument("--resamples", type=int, default=400, help="for the standard errors")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/kl_bound_study"))
    arguments = parser.parse_args()
    console = Console(width=150)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    settings = CaseSettings(
        num_traces=arguments.traces,
        num_candidates=arguments.candidates,
        batch_size=256,
        threads=arguments.threads,
        shortest_correct_of=arguments.samples,
    )
    console.print(f"sampling traces and drawing candidates, or reading them from {arguments.work_dir} …")
    cases = [case for case in make_cases(settings, Reliable(), arguments.work_dir) if case.steps]
    console.print(f"scoring the {sum(len(step.candidates) for case in cases for step in case.steps)} distinct draws …")
    scored = score_in_full(WindowScorer(source_of(settings).scoring_model()), cases, arguments.window)
    figures: dict[str, Any] = {"traces": len(cases), "original": original(cases).figures(), "rules": {}}
    for rewriter in (KLBound(), Reliable()):
        sweeps = {
            scale: [Point(scale, bound, _rewritten(scored, rewriter, bound, scale)) for bound in bounds]
            for scale, bounds in SWEEPS.items()
        }
        figures["rules"][rewriter.name] = {
            "sweep": [point.figures() for points in sweeps.values() for point in points],
            "at_equal_savings": at_equal_savings(sweeps["constant"], sweeps["entropy"], arguments.resamples),
        }
    console.print(_sweep_table(figures))
    console.print(_comparison_table(figures))
    print(json.dumps(figures))


def original(cases: Sequence[Case]) -> Point:
    """Return the traces as they are, as a point where nothing is rewritten."""
    unchanged = [_trace(case, [step.step_text for step in case.steps], tokens_saved=0, steps_rewritten=0) for case in cases]
    return Point("constant", 0.0, unchanged)


def at_equal_savings(constant: Sequence[Point], entropy: Sequence[Point], resamples: int) -> list[dict[str, Any]]:
    """Compare what two sweeps break, where they save the same share of tokens.

    The levels are those of all traces together; in a resample that does not reach a level, its nearest end stands in.
    """
    curves = [[point.figures() for point in points] for points in (constant, entropy)]
    saved = [sorted(figures["tokens_saved"] for figures in curve) for curve in curves]
    lowest, highest = max(own[0] for own in saved), min(own[-1] for own in saved)
    levels = np.linspace(lowest, highest, LEVELS)
    counts = [_Counts.of(points) for points in (constant, entropy)]
    everyone = np.arange(counts[0].tokens.shape[1])
    rng = np.random.default_rng(0)
    drawn = [rng.choice(everyone, len(everyone)) for _ in range(resamples)]
    rows: list[dict[str, Any]] = [{"tokens_saved": level} for level in levels.tolist()]
    for name in BROKEN:
        broken = [own.at(levels, name, everyone) for own in counts]
        changes = np.array([counts[1].at(levels, name, some) - counts[0].at(levels, name, some) for some in drawn])
        for index, row in enumerate(rows):
            row[f"{name}_per_100"] = {"constant": float(broken[0][index]), "entropy": float(broken[1][index])}
            row[f"{name}_change"] = float(broken[1][index] - broken[0][index])
            row[f"{name}_change_se"] = float(changes[:, index].std(ddof=1))
    for scale, curve in zip(("constant", "entropy"), curves, strict=True):
        with_share = [figures for figures in curve if figures["one_shot_share"] is not None]
        by_saving = np.array(sorted((figures["tokens_saved"], figures["one_shot_share"]) for figures in with_share))
        shares = np.interp(levels, by_saving[:, 0], by_saving[:, 1]).tolist() if with_share else [None] * LEVELS
        for row, share in zip(rows, shares, strict=True):
            row.setdefault("one_shot_share", {})[scale] = share
    return rows


@dataclass(frozen=True)
class _Counts:
    """Of each point (rows) and trace (columns)."""

    tokens: np.ndarray
    saved: np.ndarray
    broken: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, points: Sequence[Point]) -> "_Counts":
        def counted(name: str) -> np.ndarray:
            return np.array([[getattr(trace, name) for trace in point.traces] for point in points])

        return cls(counted("tokens"), counted("tokens_saved"), {name: counted(name) for name in BROKEN})

    def at(self, levels: np.ndarray, name: str, traces: np.ndarray) -> np.ndarray:
        """Return what is broken per 100 of the traces, where so much is saved on them."""
        saved = self.saved[:, traces].sum(1) / self.tokens[:, traces].sum(1)
        order = np.argsort(saved, kind="stable")
        return np.interp(levels, saved[order], 100 * self.broken[name][:, traces].mean(1)[order])


def _rewritten(
    scored: Sequence[ScoredStep], rewriter: KLBound | Reliable, kl_bound: float, scale: BoundScale
) -> list[Rewritten]:
    kept: dict[str, list[str]] = {}
    saved: dict[str, int] = {}
    changed: dict[str, int] = {}
    cases: dict[str, Case] = {}
    for step in scored:
        candidate = step.choice(rewriter, kl_bound, scale).candidate
        trace_id = step.case.trace.trace_id
        cases[trace_id] = step.case
        kept.setdefault(trace_id, []).append(candidate.text if candidate else step.step.step_text)
        saving = step.num_step_tokens - len(candidate.token_ids) if candidate else 0
        saved[trace_id] = saved.get(trace_id, 0) + saving
        changed[trace_id] = changed.get(trace_id, 0) + (candidate is not None)
    return [
        _trace(case, kept[trace_id], tokens_saved=saved[trace_id], steps_rewritten=changed[trace_id])
        for trace_id, case in cases.items()
    ]


def _trace(case: Case, kept: Sequence[str], *, tokens_saved: int, steps_rewritten: int) -> Rewritten:
    answer = last_boxed(case.trace.text.rpartition(ModelSettings().think_end)[2])
    assert answer is not None, "a correct trace has its answer in a box"
    found = audit(
        question=case.problem.question,
        original_steps=[step.step_text for step in case.steps],
        kept_steps=kept,
        answer=int(answer),
    )
    return Rewritten(
        list(kept),
        case.trace.num_tokens,
        tokens_saved,
        steps_rewritten,
        len(found.false_equations),
        len(found.standing_equations),
        len(found.lost_values),
    )


def _sweep_table(figures: Mapping[str, Any]) -> RichTable:
    table = RichTable("rule", "bound", title="the sweep: tokens saved, steps rewritten, and what is broken per 100 traces")
    for header in ("ε", "saved %", "rewritten %", "false / 100", "standing / 100", "lost / 100", "one-shot share"):
        table.add_column(header, justify="right")
    rows = [(name, own) for name, rule in figures["rules"].items() for own in rule["sweep"]]
    for name, own in [("original", figures["original"]), *rows]:
        table.add_row(
            name,
            "–" if name == "original" else own["scale"],
            "–" if name == "original" else f"{own['kl_bound']:.2g}",
            f"{100 * own['tokens_saved']:.1f}",
            f"{100 * own['steps_rewritten']:.1f}",
            *(f"{own[f'{broken}_per_100']:.1f}" for broken in BROKEN),
            _share(own["one_shot_share"]),
        )
    return table


def _comparison_table(figures: Mapping[str, Any]) -> RichTable:
    table = RichTable("rule", title="at equal tokens saved: constant → entropy, and the change per 100 traces")
    for header in ("saved %", "false / 100", "", "standing / 100", "", "lost / 100", "", "one-shot share"):
        table.add_column(header, justify="right")
    for name, rule in figures["rules"].items():
        for row in rule["at_equal_savings"]:
            cells = [name, f"{100 * row['tokens_saved']:.1f}"]
            for broken in BROKEN:
                both = row[f"{broken}_per_100"]
                cells += [
                    f"{both['constant']:.1f} → {both['entropy']:.1f}",
                    f"{row[f'{broken}_change']:+.1f} ± {row[f'{broken}_change_se']:.1f}",
                ]
            share = row["one_shot_share"]
            table.add_row(*cells, f"{_share(share['constant'])} → {_share(share['entropy'])}")
    return table


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"


if __name__ == "__main__":
    main()
