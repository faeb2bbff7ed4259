"""Which charts a run has: those that its tables can fill."""

import math
from collections.abc import Mapping, Sequence

from tokensqueeze.config import KLBound, ObjectiveSettings, Reliable
from tokensqueeze.metrics.difficulty import BINS, DifficultyBin, by_difficulty, measured_half, sorted_apart
from tokensqueeze.metrics.token_budget import budget_curve
from tokensqueeze.reporting.charts import Cell, Chart, Colour, Histogram, Line, bar_chart, histogram_chart, line_chart
from tokensqueeze.reporting.comparisons import saved_tokens
from tokensqueeze.reporting.refinement import kl_on_the_rest, turned_down
from tokensqueeze.reporting.report_data import ReportData, StageRecord
from tokensqueeze.reporting.wording import PASS_RATES, counted, duration, plain
from tokensqueeze.schema import EvaluationTrace, RefinedTrace

_SMALLEST_KL = 1e-7
_BINS_PER_DECADE = 6
_BUDGETS = 100


def evaluation_charts(data: ReportData) -> list[Chart]:
    if not data.base_evaluation or not data.squeezed_evaluation:
        return []
    return [_budget_chart(data), _length_chart(data), *_difficulty_charts(data)]


def refinement_charts(data: ReportData) -> list[Chart]:
    decisions = [decision for trace in data.refined_traces for decision in trace.decisions]
    rewriter = data.settings.rewriter
    if rewriter.name == "none":
        return []
    rewritten = [decision for decision in decisions if decision.rewritten]
    tried = [candidate for decision in decisions if (candidate := turned_down(decision, rewriter))]
    # A model whose logits overflow gives a KL that is no number.
    accepted = [decision.kl for decision in rewritten if math.isfinite(decision.kl)]
    over_bound = [one.kl for one in tried if not one.kl_is_known and math.isfinite(one.kl)]
    checked = [
        (decision.kl, kl)
        for decision in rewritten
        if (kl := kl_on_the_rest(decision)) is not None and math.isfinite(decision.kl + kl)
    ]
    charts = [_saving_chart(data.refined_traces)] if rewritten else []
    if accepted or over_bound:
        charts.append(_kl_chart(accepted, over_bound, rewriter))
    if checked:
        charts.append(_rest_chart([kl for kl, _ in checked], [kl for _, kl in checked], rewriter))
    if rewriter.name == "reliable":
        kept = [decision.reliability for decision in decisions if decision.reliability is not None]
        unreliable = [one.reliability for one in tried if one.reliability is not None]
        if kept or unreliable:
            charts.append(_reliability_chart(kept, unreliable, rewriter.min_reliability))
    return charts


def training_charts(data: ReportData) -> list[Chart]:
    steps = [row for row in data.training_log if "loss" in row]
    looks = [row for row in data.training_log if row.get("dev_accuracy") is not None]
    charts = []
    if steps:
        charts.append(_loss_chart(steps))
        charts.append(_logps_chart(steps))
        if _has(steps, "margin"):
            charts.append(_rewards_chart(steps, data.settings.objective))
        if _has(steps, "preference_accuracy"):
            charts.append(_preference_chart(steps))
        charts.append(_norm_chart(steps, data.settings.training.max_grad_norm))
    if looks:
        charts += _dev_charts(looks)
    return charts


def time_chart(stages: Sequence[StageRecord]) -> list[Chart]:
    if not stages:
        return []
    bars = [
        (
            plain(stage.name),
            stage.seconds,
            duration(stage.seconds) + (" (reused)" if stage.reused else ""),
            stage.reused,
        )
        for stage in stages
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            plain(stage.name),
            stage.rows,
            round(stage.seconds, 1),
            stage.tokens,
            round(stage.tokens / stage.seconds) if stage.seconds else None,
            stage.workers,
            "yes" if stage.reused else "no",
            ", ".join(f"{plain(name)} {count:,g}" for name, count in stage.counts.items()),
        )
        for stage in stages
    ]
    return [
        bar_chart(
            "time",
            "Wall-clock time per stage",
            bars,
            x_label="seconds",
            headers=("stage", "rows", "seconds", "tokens", "tokens/s", "workers", "reused", "counts"),
            rows=rows,
            note="Pale: taken over from an earlier run, with the time it took then."
            if any(stage.reused for stage in stages)
            else "",
        )
    ]


def _budget_chart(data: ReportData) -> Chart:
    models: tuple[tuple[str, Sequence[EvaluationTrace], Colour], ...] = (
        ("base", data.base_evaluation, "base"),
        ("squeezed", data.squeezed_evaluation, "squeezed"),
    )
    longest = max(trace.num_tokens for _, traces, _ in models for trace in traces)
    end = min(data.token_budget, longest)
    budgets = sorted({round(end * index / _BUDGETS) for index in range(_BUDGETS + 1)})
    lines = []
    for decoding in ("sampled", "greedy"):
        for label, traces, colour in models:
            chosen = [trace for trace in traces if trace.decoding == decoding]
            if chosen:
                curve = budget_curve(chosen, budgets)
                dashed = decoding == "greedy"
                lines.append(Line(f"{label}, {decoding}", budgets, curve.accuracy, colour, dashed, band=curve.intervals))
    return line_chart(
        "budget",
        "Accuracy against token budget",
        lines,
        x_label="tokens allowed per answer",
        percent=True,
        from_zero=True,
        note="An answer counts if it is right and no longer than the budget. The area under a curve, over a budget of "
        f"{data.token_budget:,} tokens, is the AUC. Bands: 95 % intervals over problems.",
    )


def _length_chart(data: ReportData) -> Chart:
    decoding = "sampled" if any(trace.decoding == "sampled" for trace in data.base_evaluation) else "greedy"
    lengths = {
        label: [trace.num_tokens for trace in traces if trace.decoding == decoding]
        for label, traces in (("base", data.base_evaluation), ("squeezed", data.squeezed_evaluation))
    }
    return histogram_chart(
        "lengths",
        "How long the answers are",
        [Histogram("base", lengths["base"], "base"), Histogram("squeezed", lengths["squeezed"], "squeezed")],
        x_label="tokens per answer",
        y_label="share of answers",
        show_medians=True,
        note=f"{decoding.capitalize()} answers to held-out problems, right or wrong. Dotted: medians.",
    )


def _difficulty_charts(data: ReportData) -> list[Chart]:
    """Draw accuracy and length by the base's pass rate, as other samples of the base than those drawn have it."""
    sampled = {
        "base": [trace for trace in data.base_evaluation if trace.decoding == "sampled"],
        "squeezed": [trace for trace in data.squeezed_evaluation if trace.decoding == "sampled"],
    }
    apart = sorted_apart(sampled["base"]) if sampled["base"] and sampled["squeezed"] else None
    if apart is None:
        return []
    base = by_difficulty(apart.measured, apart.pass_rates)
    squeezed = by_difficulty(measured_half(sampled["squeezed"]), apart.pass_rates)
    places = {BINS.index(bin.label): f"{PASS_RATES[bin.label]}\nn = {bin.num_problems:,}" for bin in base}
    x_ticks = {float(index): places[place] for index, place in enumerate(sorted(places))}
    note = (
        "Half of the base model's samples sort the problems, hardest on the left (n: problems); the other half is "
        "what is shown, of both models. Bars: one standard error."
    )
    x_label = "base model's pass rate"
    return [
        line_chart(
            "difficulty-accuracy",
            "Accuracy by difficulty",
            [_accuracy_line("base", base, "base"), _accuracy_line("squeezed", squeezed, "squeezed")],
            x_label=x_label,
            x_ticks=x_ticks,
            percent=True,
            from_zero=True,
            note=note,
        ),
        line_chart(
            "difficulty-length",
            "Length by difficulty",
            [_length_line("base", base, "base"), _length_line("squeezed", squeezed, "squeezed")],
            x_label=x_label,
            y_label="tokens per answer",
            x_ticks=x_ticks,
            from_zero=True,
            note="Sorted and measured in the same way.",
        ),
    ]


def _accuracy_line(label: str, bins: Sequence[DifficultyBin], colour: Colour) -> Line:
    x = [float(index) for index in range(len(bins))]
    return Line(label, x, [bin.accuracy for bin in bins], colour, error=[bin.accuracy_se for bin in bins], markers=True)


def _length_line(label: str, bins: Sequence[DifficultyBin], colour: Colour) -> Line:
    x = [float(index) for index in range(len(bins))]
    return Line(label, x, [bin.length for bin in bins], colour, error=[bin.length_se for bin in bins], markers=True)


def _saving_chart(traces: Sequence[RefinedTrace]) -> Chart:
    return histogram_chart(
        "savings",
        "Tokens saved per trace",
        [Histogram("traces", [saved_tokens(trace) for trace in traces], "squeezed")],
        x_label="tokens saved (below 0: became longer)",
        y_label="share of traces",
        marks={"unchanged length": 0},
    )


def _kl_chart(accepted: Sequence[float], over_bound: Sequence[float], rewriter: KLBound | Reliable) -> Chart:
    note = "KL of the trace's own following tokens, original against rewritten step; 0 would be no change at all."
    if over_bound:
        note += (
            " Turned down: of each step the candidate that came nearest. It is read only until it is over the bound, "
            "so its whole KL may lie further right."
        )
    groups = (
        Histogram(f"accepted: {len(accepted):,}", accepted, "squeezed"),
        Histogram(f"turned down: {len(over_bound):,}", over_bound, "rejected"),
    )
    return _kl_histogram("kl", "How much a rewriting changes what follows", groups, rewriter, note)


def _rest_chart(window: Sequence[float], rest: Sequence[float], rewriter: KLBound | Reliable) -> Chart:
    groups = (Histogram("in the window", window, "base"), Histogram("on the whole rest", rest, "squeezed"))
    note = (
        f"KL of the same {counted(len(rest), 'accepted rewriting')}, on the window of {rewriter.window_tokens:,} tokens that "
        "decided and on all that follows in the trace. Where no more than the window follows, both are the same."
    )
    return _kl_histogram("rest-kl", "How far an accepted rewriting reaches", groups, rewriter, note)


def _kl_histogram(name: str, title: str, groups: Sequence[Histogram], rewriter: KLBound | Reliable, note: str) -> Chart:
    """Draw KLs on a log axis, with the bound between two bars: none holds values of both sides."""
    shown = [group for group in groups if group.values]
    values = [max(value, _SMALLEST_KL) for group in shown for value in group.values]
    bound = rewriter.kl_bound
    below = max(1, math.ceil(math.log10(bound / min(values))))
    above = max(1, math.ceil(math.log10(max(values) / bound)))
    marks = {f"bound {bound:g}": bound}
    if rewriter.bound_scale == "entropy":
        marks = {}
        note += f" The bound differs from step to step: {bound:g} of the entropy of the original's predictions."
    return histogram_chart(
        name,
        title,
        shown,
        x_label=f"KL divergence, nats {'per token' if rewriter.kl_reduction == 'mean' else 'over all tokens read'}",
        y_label="share of each group" if len(shown) > 1 else "share",
        bins=_BINS_PER_DECADE * (below + above),
        log=True,
        limits=(bound / 10**below, bound * 10**above),
        marks=marks,
        note=note,
    )


def _reliability_chart(kept: Sequence[float], unreliable: Sequence[float], least: float) -> Chart:
    groups = (
        Histogram(f"kept: {len(kept):,}", kept, "squeezed"),
        Histogram(f"turned down: {len(unreliable):,}", unreliable, "rejected"),
    )
    shown = [group for group in groups if group.values]
    note = (
        "Share of the draws of a form that have the same effect as the original, smoothed. Kept steps below the mark "
        "had no form above it: the most dependable one was kept."
    )
    if unreliable:
        note += " Turned down: candidates within the KL bound, of forms too few of whose draws are."
    return histogram_chart(
        "reliability",
        "How dependable the forms are",
        shown,
        x_label="reliability of a step's form",
        y_label="share of each group" if len(shown) > 1 else "share",
        bins=20,
        limits=(0.0, 1.0),
        marks={f"required {least:g}": least},
        note=note,
    )


def _loss_chart(steps: Sequence[Mapping[str, float | None]]) -> Chart:
    parts: tuple[tuple[str, str, Colour], ...] = (
        ("loss", "loss", "ink"),
        ("dpo_loss", "preference part", "squeezed"),
        ("sft_loss", "SFT part", "third"),
    )
    lines = [_step_line(steps, key, label, colour) for key, label, colour in parts if _has(steps, key)]
    if len(lines) == 2:
        lines = lines[:1]  # one part alone is the loss itself
    return line_chart(
        "loss",
        "Loss",
        lines,
        x_label="optimiser step",
        smooth=True,
        note="Thin: single batches; thick: running mean." if len(steps) >= 50 else "",
    )


def _logps_chart(steps: Sequence[Mapping[str, float | None]]) -> Chart:
    sides: tuple[tuple[str, Colour], ...] = (("chosen", "chosen"), ("rejected", "rejected"))
    lines = []
    against_reference = _has(steps, "ref_chosen_logps")
    for side, colour in sides:
        if not _has(steps, f"{side}_logps"):
            continue
        y = [_difference(row.get(f"{side}_logps"), row.get(f"ref_{side}_logps") if against_reference else 0.0) for row in steps]
        lines.append(Line(side, [_step(row) for row in steps], y, colour))
    return line_chart(
        "logps",
        "Log-probability of chosen and rejected traces",
        lines,
        x_label="optimiser step",
        y_label="nats against the base" if against_reference else "nats",
        smooth=True,
        note="Per trace. Preference training that breaks a model shows here, as a fall by many nats; not in the loss.",
    )


def _rewards_chart(steps: Sequence[Mapping[str, float | None]], objective: ObjectiveSettings) -> Chart:
    parts: tuple[tuple[str, str, Colour], ...] = (
        ("chosen_reward", "chosen", "chosen"),
        ("rejected_reward", "rejected", "rejected"),
        ("margin", "margin", "ink"),
    )
    reward = "mean log-probability per token" if objective.name == "simpo" else "log-probability against the base"
    return line_chart(
        "rewards",
        "Rewards, and the margin between them",
        [_step_line(steps, key, label, colour) for key, label, colour in parts if _has(steps, key)],
        x_label="optimiser step",
        smooth=True,
        note=f"A trace's reward is its {reward}, times beta; the margin is by how much the chosen one's is larger.",
    )


def _norm_chart(steps: Sequence[Mapping[str, float | None]], clipped_at: float) -> Chart:
    return line_chart(
        "gradient",
        "Gradient norm",
        [_step_line(steps, "grad_norm", "gradient norm", "ink")],
        x_label="optimiser step",
        from_zero=True,
        smooth=True,
        note=f"Before clipping to {clipped_at:g}.",
    )


def _preference_chart(steps: Sequence[Mapping[str, float | None]]) -> Chart:
    return line_chart(
        "preference",
        "Pairs in which the chosen trace is preferred",
        [_step_line(steps, "preference_accuracy", "preference accuracy", "squeezed")],
        x_label="optimiser step",
        percent=True,
        smooth=True,
    )


def _dev_charts(looks: Sequence[Mapping[str, float | None]]) -> list[Chart]:
    charts = [
        line_chart(
            "dev-accuracy",
            "Accuracy on the dev problems",
            [_step_line(looks, "dev_accuracy", "dev accuracy", "squeezed", markers=True)],
            x_label="optimiser step",
            percent=True,
            note="Greedy answers. Training stops where this falls too far.",
        )
    ]
    if _has(looks, "dev_length"):
        charts.append(
            line_chart(
                "dev-length",
                "Length on the dev problems",
                [_step_line(looks, "dev_length", "dev length", "squeezed", markers=True)],
                x_label="optimiser step",
                y_label="tokens per answer",
                from_zero=True,
            )
        )
    return charts


def _step_line(
    rows: Sequence[Mapping[str, float | None]], key: str, label: str, colour: Colour, *, markers: bool = False
) -> Line:
    return Line(label, [_step(row) for row in rows], [row.get(key) for row in rows], colour, markers=markers)


def _step(row: Mapping[str, float | None]) -> float:
    return row["step"] or 0.0


def _has(rows: Sequence[Mapping[str, float | None]], key: str) -> bool:
    return any(row.get(key) is not None for row in rows)


def _difference(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference
