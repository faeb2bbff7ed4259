"""What `tokensqueeze evaluate` measured, as tables for a terminal: a benchmark each, a row per decoding and thinking budget."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tokensqueeze.reporting.wording import number, percent

HEADERS = ("", "accuracy %", "pass@k %", "Len-T", "Len-A", "thinking", "answer", "cut off %", "unverifiable %", "AUC %")
LEGEND = (
    "Below a figure: its 95 % interval, bootstrapped over problems. Lengths are tokens of the model's own tokenizer; Len-T: "
    "mean of the correct answers, Len-A: of all; cut off: hit the token limit; AUC: area under accuracy against token budget. "
    "Under a thinking budget, the text that closes the thinking counts as thinking, and all that follows as answer."
)


def benchmark_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Lay out the contents of evaluation.json that `tokensqueeze evaluate` wrote."""
    tables = [_table(name, figures["model"], own) for name, own in figures["benchmarks"].items()]
    if tables:
        tables[-1].caption = LEGEND
        tables[-1].caption_justify = "left"
    return tables


def benchmark_rows(benchmark: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return one benchmark's rows of written figures."""
    rows = [(decoding, *_figures(cell)) for decoding, cell in benchmark["cells"].items()]
    return rows + [(f"thinking ≤ {budget}", *_figures(cell)) for budget, cell in benchmark["forced"].items()]


def _table(name: str, model: str, benchmark: Mapping[str, Any]) -> Table:
    problems = max(cell["num_problems"] for cell in benchmark["cells"].values())
    samples = sum(cell["num_samples"] for cell in benchmark["cells"].values())
    title = f"{model} on {name}: {problems:,} problems, {samples:,} traces, token budget {benchmark['token_budget']:,}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in HEADERS:
        table.add_column(header, justify="right" if header else "left", overflow="fold")
    for row in benchmark_rows(benchmark):
        table.add_row(*row)
    return table


def _figures(cell: Mapping[str, Any]) -> tuple[str, ...]:
    # The largest k that was measured beside pass@1, which is the accuracy.
    k, most = max(cell["pass_at_k"].items(), key=lambda item: int(item[0]), default=("", None))
    return (
        _share(cell["accuracy"], cell["accuracy_ci"]),
        f"{100 * most['value']:.1f} @{k}" if most and int(k) > 1 else "–",
        _length(cell["length_correct"], cell["length_correct_ci"]),
        _length(cell["length_all"], cell["length_all_ci"]),
        number(cell["thinking_length"]),
        number(cell["answer_length"]),
        percent(cell["truncated"]).removesuffix(" %"),
        percent(cell["unverifiable"]).removesuffix(" %"),
        _share(cell["auc"], cell["auc_ci"]),
    )


def _share(value: float, interval: list[float] | None) -> str:
    """0.927, [0.9, 0.95] → `92.7` above `90.0–95.0`."""
    return f"{100 * value:.1f}" + ("" if interval is None else f"\n{100 * interval[0]:.1f}–{100 * interval[1]:.1f}")


def _length(value: float | None, interval: list[float] | None) -> str:
    return (
        number(value) if value is None or interval is None else f"{number(value)}\n{number(interval[0])}–{number(interval[1])}"
    )
