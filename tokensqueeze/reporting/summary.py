"""The evaluation as a table, for terminals and for Markdown: base against squeezed, greedy and sampled, the change."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tokensqueeze.reporting.wording import number_with_error, p_value

HEADERS = ("", "accuracy %", "Len-T", "Len-A", "thinking", "answer", "AUC %")
LEGEND = (
    "± is one standard error over problems. Len-T: mean tokens of the correct answers, Len-A: of all; "
    "AUC: area under accuracy against token budget. Changes: points, and × for lengths; p: how often chance alone would give "
    "such a change, tested by problem."
)
_DECODINGS = ("sampled", "greedy")


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """Lay evaluation.json out for a terminal."""
    table = Table(caption=LEGEND, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in HEADERS:
        # A narrow terminal folds a figure over two lines; an ellipsis would hide what the table is there for.
        table.add_column(header, justify="right" if header else "left", overflow="fold")
    for row in evaluation_rows(evaluation):
        table.add_row(*row, style="bold" if row[0].startswith("change") else None, end_section=row[0].startswith("p,"))
    return table


def evaluation_markdown(evaluation: Mapping[str, Any]) -> str:
    """Lay evaluation.json out as a Markdown table, with its legend below."""
    lines = [_markdown_row(HEADERS), _markdown_row(["---"] + ["---:"] * (len(HEADERS) - 1))]
    lines += [_markdown_row(row) for row in evaluation_rows(evaluation)]
    return "\n".join(lines) + f"\n\n{LEGEND}\n"


def evaluation_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of written figures per model and decoding, and of changes and their p; only of decodings that were done."""
    rows: list[tuple[str, ...]] = []
    for decoding in _DECODINGS:
        for model in ("base", "squeezed"):
            cell = evaluation.get(model, {}).get(decoding)
            if cell is not None:
                rows.append((f"{model}, {decoding}", *_cell_figures(cell)))
        change = evaluation.get("change", {}).get(decoding)
        if change is not None:
            rows.append((f"change, {decoding}", *_change_figures(change)))
            ps = [p_value(change[f"{name}_p"]) for name in ("accuracy", "length", "auc")]
            rows.append((f"p, {decoding}", ps[0], "", ps[1], "", "", ps[2]))
    return rows


def _cell_figures(cell: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        _hundredfold(cell["accuracy"], cell["accuracy_se"]),
        *(
            number_with_error(cell[key], cell.get(f"{key}_se"))
            for key in ("length_correct", "length_all", "thinking_length", "answer_length")
        ),
        _hundredfold(cell["auc"], cell.get("auc_se")),
    )


def _change_figures(change: Mapping[str, Any]) -> tuple[str, ...]:
    ratio, error = change["length_ratio"], change["length_ratio_se"]
    return (
        _hundredfold(change["accuracy"], change["accuracy_se"], sign="+"),
        "",
        f"× {ratio:.3f}" if error is None else f"× {ratio:.3f} ± {error:.3f}",
        "",
        "",
        _hundredfold(change["auc"], change["auc_se"], sign="+"),
    )


def _hundredfold(share: float, error: float | None, *, sign: str = "-") -> str:
    """0.927, 0.006 → `92.7 ± 0.6`; with a sign of `+`, both signs are written."""
    written = f"{100 * share:{sign}.1f}".replace("-", "−")
    return written if error is None else f"{written} ± {100 * error:.1f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
