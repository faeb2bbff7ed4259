"""Which charts a comparison has: those that its traces can fill, one colour for each model throughout."""

from collections.abc import Callable, Sequence

from tokensqueeze.metrics.difficulty import BINS, DifficultyBin
from tokensqueeze.reporting.charts import MODEL_COLOURS, Chart, Colour, Histogram, Line, histogram_chart, line_chart
from tokensqueeze.reporting.comparison_data import Section
from tokensqueeze.reporting.wording import PASS_RATES
from tokensqueeze.schema import EvaluationTrace


def colour_of(index: int) -> Colour:
    return MODEL_COLOURS[index % len(MODEL_COLOURS)]


def is_dashed(index: int) -> bool:
    """More models than colours: the next round is dashed."""
    return index >= len(MODEL_COLOURS)


def main_charts(section: Section, prefix: str) -> list[Chart]:
    """Draw accuracy against the budget, and under forced thinking budgets where there are any."""
    return [_budget_chart(section, prefix), *_forced_charts(section, prefix)]


def length_charts(section: Section, prefix: str) -> list[Chart]:
    parts: tuple[tuple[str, str, str, Callable[[EvaluationTrace], int]], ...] = (
        ("lengths", "How long the completions are", "tokens per completion", lambda trace: trace.num_tokens),
        ("thinking", "Of them, thinking", "tokens up to the end of thinking", lambda trace: trace.thinking_tokens),
        ("answers", "Of them, answer", "tokens behind the thinking", lambda trace: trace.answer_tokens),
    )
    return [
        histogram_chart(
            f"{prefix}-{name}",
            title,
            [
                Histogram(model.name, [tokens(trace) for trace in model.traces], colour_of(index))
                for index, model in enumerate(section.models)
            ],
            x_label=x_label,
            y_label="share of completions",
            show_medians=True,
            note="Right or wrong. Dotted: medians." if name == "lengths" else "",
        )
        for name, title, x_label, tokens in parts
    ]


def difficulty_charts(section: Section, prefix: str) -> list[Chart]:
    if section.difficulty is None:
        return []
    by_model = section.difficulty
    places = {BINS.index(bin.label): f"{PASS_RATES[bin.label]}\nn = {bin.num_problems:,}" for bin in by_model[0]}
    return _binned_charts(
        section,
        by_model,
        f"{prefix}-difficulty",
        "by difficulty",
        f"pass rate of {section.models[0].name}",
        list(places.values()),
    )


def level_charts(section: Section, prefix: str) -> list[Chart]:
    by_model = section.levels
    if len(by_model[0]) < 2:
        return []
    places = [f"{bin.label}\nn = {bin.num_problems:,}" for bin in by_model[0]]
    return _binned_charts(section, by_model, f"{prefix}-level", "by level", "level that the data set gives", places)


def _budget_chart(section: Section, prefix: str) -> Chart:
    lines = [
        Line(model.name, curve.budgets, curve.accuracy, colour_of(index), dashed=is_dashed(index), band=curve.intervals)
        for index, (model, curve) in enumerate(zip(section.models, section.curves, strict=True))
    ]
    return line_chart(
        f"{prefix}-budget",
        "Accuracy against token budget",
        lines,
        x_label="tokens allowed per completion",
        percent=True,
        from_zero=True,
        note="A completion counts if it is right and no longer than the budget. The area under a curve, over a budget of "
        f"{section.token_budget:,} tokens, is the AUC. Bands: 95 % intervals over problems.",
    )


def _forced_charts(section: Section, prefix: str) -> list[Chart]:
    drawn = [
        (index, model.name, points)
        for index, (model, points) in enumerate(zip(section.models, section.forced, strict=True))
        if points
    ]
    if not drawn:
        return []

    def lines(by_length: bool) -> list[Line]:
        return [
            Line(
                name,
                [point.length if by_length else point.thinking_budget for point in points],
                [point.accuracy for point in points],
                colour_of(index),
                dashed=is_dashed(index),
                markers=True,
                band=[point.interval for point in points],
            )
            for index, name, points in drawn
        ]

    return [
        line_chart(
            f"{prefix}-forced",
            "Accuracy when thinking is stopped",
            lines(by_length=False),
            x_label="tokens of thinking allowed",
            percent=True,
            from_zero=True,
            note="At the budget thinking is closed and the answer asked for, as a server would. A model that was stopped early "
            "may reason on in its answer: what that takes is in the next chart. Bands: 95 % intervals over problems.",
        ),
        line_chart(
            f"{prefix}-forced-length",
            "The same, by what it costs",
            lines(by_length=True),
            x_label="tokens really generated, mean",
            percent=True,
            from_zero=True,
            note="Each point is one thinking budget; thinking that ends by itself costs less than its budget.",
        ),
    ]


def _binned_charts(
    section: Section, by_model: Sequence[Sequence[DifficultyBin]], name: str, title: str, x_label: str, places: Sequence[str]
) -> list[Chart]:
    x_ticks = {float(index): place for index, place in enumerate(places)}

    def lines(value: Callable[[DifficultyBin], float], error: Callable[[DifficultyBin], float | None]) -> list[Line]:
        return [
            Line(
                model.name,
                list(x_ticks),
                [value(bin) for bin in bins],
                colour_of(index),
                dashed=is_dashed(index),
                error=[error(bin) for bin in bins],
                markers=True,
            )
            for index, (model, bins) in enumerate(zip(section.models, by_model, strict=True))
        ]

    return [
        line_chart(
            f"{name}-accuracy",
            f"Accuracy {title}",
            lines(lambda bin: bin.accuracy, lambda bin: bin.accuracy_se),
            x_label=x_label,
            percent=True,
            from_zero=True,
            x_ticks=x_ticks,
            note="n: problems. Bars: one standard error.",
        ),
        line_chart(
            f"{name}-length",
            f"Length {title}",
            lines(lambda bin: bin.length, lambda bin: bin.length_se),
            x_label=x_label,
            y_label="tokens per completion",
            from_zero=True,
            x_ticks=x_ticks,
        ),
    ]
