"""Charts as inline SVG: text stays text, colours are the page's own variables, and the same data give the same bytes.

Every chart carries the numbers behind it, so that the page can show them as a table to those who can't see it.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokensqueeze.errors import MissingPackageError

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
except ImportError as error:
    raise MissingPackageError("the report's charts need matplotlib: pip install 'tokensqueeze[run]'") from error

Colour = Literal["ink", "muted", "grid", "base", "squeezed", "chosen", "rejected", "third"]
Cell = str | int | float | None

# Placeholders that matplotlib passes through and the page's style sheet fills in, one way by day and another by night.
_INK: dict[Colour, str] = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "base": "#040404",
    "squeezed": "#050505",
    "chosen": "#060606",
    "rejected": "#070707",
    "third": "#080808",
}
_MOST_POINTS = 400
_WIDTH_INCHES, _HEIGHT_INCHES = 5.2, 3.0
_SETTINGS: dict[str, object] = {
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK["muted"],
    "axes.labelcolor": _INK["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": _INK["muted"],
    "ytick.color": _INK["muted"],
    "text.color": _INK["ink"],
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Chart:
    """One drawn chart: `svg` is markup made here alone, never out of a trace's text."""

    name: str
    title: str
    note: str
    svg: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Line:
    """A curve; `error` is one standard error up and down."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: Colour
    dashed: bool = False
    error: Sequence[float | None] | None = None
    markers: bool = False


@dataclass(frozen=True)
class Histogram:
    label: str
    values: Sequence[float]
    colour: Colour


def line_chart(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str = "",
    note: str = "",
    percent: bool = False,
    x_ticks: Mapping[float, str] | None = None,
    from_zero: bool = False,
    smooth: bool = False,
    table_rows: int = 25,
) -> Chart:
    """Draw curves over one x axis; `percent` says that y is a share, `smooth` lays a running mean over raw values."""

    def draw(axes: Axes) -> None:
        for line in lines:
            x, y = np.asarray(line.x, dtype=float), _floats(line.y)
            shown = _thinned(range(len(x)), _MOST_POINTS)
            style = (0, (4, 2)) if line.dashed else "solid"
            window = max(1, len(x) // 25) if smooth else 1
            if window > 1:
                axes.plot(x[shown], y[shown], color=_INK[line.colour], linewidth=0.8, alpha=0.35)
                y = _running_mean(y, window)
            marker = {"marker": "o", "markersize": 5} if line.markers or len(x) == 1 else {}
            axes.plot(x[shown], y[shown], color=_INK[line.colour], linestyle=style, label=line.label, **marker)  # type: ignore[arg-type]
            if line.error is not None:
                error = _floats(line.error)
                axes.errorbar(x, y, yerr=error, fmt="none", ecolor=_INK[line.colour], elinewidth=1.2, capsize=3)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
            axes.set_ylim(top=min(1.03, axes.get_ylim()[1]))
        if from_zero:
            axes.set_ylim(bottom=0, top=1.03 if percent else None)
        if x_ticks is not None:
            axes.set_xticks(list(x_ticks), list(x_ticks.values()))
            axes.set_xlim(min(x_ticks) - 0.4, max(x_ticks) + 0.4)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
            axes.margins(x=0.02)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(axes, len(lines))

    everywhere = sorted({x for line in lines for x in line.x})
    shown = [everywhere[index] for index in _thinned(range(len(everywhere)), table_rows)]
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    errors = [dict(zip(line.x, line.error, strict=True)) if line.error is not None else None for line in lines]
    headers = [x_label]
    for line in lines:
        headers += [line.label, "±"] if line.error is not None else [line.label]
    rows: list[tuple[Cell, ...]] = []
    for x in shown:
        row: list[Cell] = [x_ticks[x] if x_ticks else x]
        for value, error in zip(values, errors, strict=True):
            row += [value.get(x), error.get(x)] if error is not None else [value.get(x)]
        rows.append(tuple(row))
    return Chart(name, title, note, _svg(name, title, draw), tuple(headers), tuple(rows))


def histogram_chart(
    name: str,
    title: str,
    histograms: Sequence[Histogram],
    *,
    x_label: str,
    y_label: str,
    note: str = "",
    bins: int = 32,
    log: bool = False,
    marks: Mapping[str, float] | None = None,
    limits: tuple[float, float] | None = None,
    show_medians: bool = False,
) -> Chart:
    """Draw shares of each group's values over shared bins; `marks` are labelled vertical lines, where they are on the axis.

    `log` takes a logarithmic x axis; values at or below its left end are drawn in the first bin.
    """
    values = np.concatenate([np.asarray(histogram.values, dtype=float) for histogram in histograms])
    low, high = limits or (float(values.min()), float(values.max()))
    if log:
        low, high = math.log10(low), math.log10(high)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    elif not log and not limits and np.all(values == np.round(values)):
        # Whole numbers: bins of a whole width, edges between them, or the bars would beat against the counts.
        width = max(1, math.ceil((high - low + 1) / bins))
        bins = math.ceil((high - low + 1) / width)
        low, high = low - 0.5, low - 0.5 + bins * width
    edges = np.linspace(low, high, bins + 1)
    edges = 10**edges if log else edges
    shares = [_shares(histogram.values, edges) for histogram in histograms]

    def draw(axes: Axes) -> None:
        for histogram, share in zip(histograms, shares, strict=True):
            colour = _INK[histogram.colour]
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
            axes.stairs(share, edges, color=colour, linewidth=1.8, label=histogram.label)
            if show_medians:
                median = float(np.median(np.asarray(histogram.values)))
                axes.axvline(median, color=colour, linewidth=1.2, linestyle=(0, (2, 2)))
        for label, x in (marks or {}).items():
            if not edges[0] <= x <= edges[-1]:
                continue
            axes.axvline(x, color=_INK["ink"], linewidth=1.2, linestyle=(0, (4, 2)))
            left = _place(x, edges, log=log) < 0.6
            axes.annotate(
                label,
                (x, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(5 if left else -5, -2),
                textcoords="offset points",
                ha="left" if left else "right",
                va="top",
                color=_INK["ink"],
            )
        if log:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0, top=1.12 * max(float(share.max()) for share in shares))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(axes, len(histograms))

    rows = tuple(
        (f"{edges[i]:.3g} to {edges[i + 1]:.3g}", *(float(share[i]) for share in shares))
        for i in range(bins)
        if any(share[i] for share in shares)
    )
    headers = (x_label, *(histogram.label for histogram in histograms))
    return Chart(name, title, note, _svg(name, title, draw), headers, rows)


def bar_chart(
    name: str,
    title: str,
    bars: Sequence[tuple[str, float, str, bool]],
    *,
    x_label: str,
    headers: tuple[str, ...],
    rows: Sequence[tuple[Cell, ...]],
    note: str = "",
) -> Chart:
    """Draw horizontal bars, first on top: (name, length, text at its end, drawn pale)."""

    def draw(axes: Axes) -> None:
        longest = max((length for _, length, _, _ in bars), default=0) or 1
        for index, (_, length, text, pale) in enumerate(bars):
            axes.barh(index, length, height=0.62, color=_INK["squeezed"], alpha=0.35 if pale else 1)
            axes.annotate(text, (length, index), xytext=(5, 0), textcoords="offset points", va="center", color=_INK["ink"])
        axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
        axes.tick_params(axis="y", length=0, labelcolor=_INK["ink"])
        axes.set_xlim(0, 1.3 * longest)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(x_label)

    height = max(1.2, 0.6 + 0.3 * len(bars))
    return Chart(name, title, note, _svg(name, title, draw, height=height), headers, tuple(rows))


def _svg(name: str, title: str, draw: Callable[[Axes], None], *, height: float = _HEIGHT_INCHES) -> str:
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):  # type: ignore[arg-type]
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), f"chart-{name}", title)


def _inline(svg: str, name: str, title: str) -> str:
    """Cut matplotlib's document down to an element that may stand beside others of its kind in one HTML page."""
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box is not None, "matplotlib wrote an SVG without a viewBox"
    body = svg[svg.index(">", view_box.end()) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    referenced = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in referenced else "", body)
    body = re.sub(r'((?:url\(|href=")#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    # The page's own font; matplotlib names every sans-serif it knows, for every word.
    body = re.sub(r" ?font-family: [^;\"]*;?", "", body)
    # Hundredths of a point are enough for a coordinate; the text between the tags is the reader's.
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), body)
    for colour, placeholder in _INK.items():
        body = body.replace(placeholder, f"var(--{colour})")
    body = re.sub(r"\n\s*", "\n", body)
    return (
        f'<svg viewBox="{view_box[1]}" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{_escaped(title)}</title>{body}</svg>'
    )


def _legend(axes: Axes, num_entries: int) -> None:
    if num_entries > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3 if num_entries == 3 else 2,
            borderaxespad=0.2,
            handlelength=1.8,
            columnspacing=1.2,
        )


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and those up to half a window away; at both ends of as many as there are."""
    half = window // 2
    return np.array([np.nanmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _place(x: float, edges: np.ndarray, *, log: bool) -> float:
    """Return how far along the axis a value stands: 0 at its left end, 1 at its right."""
    if log:
        return math.log(x / edges[0]) / math.log(edges[-1] / edges[0])
    return float((x - edges[0]) / (edges[-1] - edges[0]))


def _shares(values: Sequence[float], edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(np.clip(np.asarray(values, dtype=float), edges[0], edges[-1]), edges)
    return counts / max(1, len(values))


def _thinned(indices: range, most: int) -> list[int]:
    """Return evenly spaced ones, first and last included."""
    if len(indices) <= most:
        return list(indices)
    return [round(index) for index in np.linspace(0, len(indices) - 1, most)]


def _thousands(value: float, _position: int | None = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
