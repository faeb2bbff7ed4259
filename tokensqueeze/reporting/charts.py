"""Charts as inline SVG: text stays text, colours are the page's own variables, and the same data give the same bytes.

Every chart carries the numbers behind it, so that the page can show them as a table to those who can't see it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokensqueeze.reporting.svg import INK, Axes, Colour, FuncFormatter, MaxNLocator, PercentFormatter, draw_svg

Cell = str | int | float | None
MODEL_COLOURS: tuple[Colour, ...] = ("base", "squeezed", "third", "rejected", "blue", "gold", "pink", "green")
"""For models side by side, the one that the others are held against first."""
_LONGEST_LABEL, _LONGEST_IN_COLUMNS = 36, 22
_MOST_POINTS = 400


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
    """A curve; `error` is one standard error up and down, `band` an interval [low, high] at each point."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: Colour
    dashed: bool = False
    error: Sequence[float | None] | None = None
    markers: bool = False
    band: Sequence[Sequence[float] | None] | None = None


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
                axes.plot(x[shown], y[shown], color=INK[line.colour], linewidth=0.8, alpha=0.35)
                y = _running_mean(y, window)
            marker = {"marker": "o", "markersize": 5} if line.markers or len(x) == 1 else {}
            axes.plot(x[shown], y[shown], color=INK[line.colour], linestyle=style, label=_label(line.label), **marker)  # type: ignore[arg-type]
            if line.band is not None:
                # Where chance shows nothing the band has no width, and is not broken off.
                low, high = (_floats([b[i] if b else v for b, v in zip(line.band, line.y, strict=True)])[shown] for i in (0, 1))
                axes.fill_between(x[shown], low, high, color=INK[line.colour], alpha=0.18, linewidth=0)
            if line.error is not None:
                error = _floats(line.error)
                axes.errorbar(x, y, yerr=error, fmt="none", ecolor=INK[line.colour], elinewidth=1.2, capsize=3)
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
    headers = [x_label, *(header for line in lines for header in _headers(line))]
    cells = [_cells(line) for line in lines]
    rows = [
        (
            x_ticks[x] if x_ticks else x,
            *(cell for own, line in zip(cells, lines, strict=True) for cell in own.get(x, _blank(line))),
        )
        for x in shown
    ]
    return Chart(name, title, note, draw_svg(name, title, draw), tuple(headers), tuple(rows))


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
            colour = INK[histogram.colour]
            # Many fills over each other would be mud.
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.5 / max(2, len(histograms) ** 2), linewidth=0)
            axes.stairs(share, edges, color=colour, linewidth=1.8, label=_label(histogram.label))
            if show_medians:
                median = float(np.median(np.asarray(histogram.values)))
                axes.axvline(median, color=colour, linewidth=1.2, linestyle=(0, (2, 2)))
        for label, x in (marks or {}).items():
            if not edges[0] <= x <= edges[-1]:
                continue
            axes.axvline(x, color=INK["ink"], linewidth=1.2, linestyle=(0, (4, 2)))
            left = _place(x, edges, log=log) < 0.6
            axes.annotate(
                label,
                (x, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(5 if left else -5, -2),
                textcoords="offset points",
                ha="left" if left else "right",
                va="top",
                color=INK["ink"],
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
    return Chart(name, title, note, draw_svg(name, title, draw), headers, rows)


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
            axes.barh(index, length, height=0.62, color=INK["squeezed"], alpha=0.35 if pale else 1)
            axes.annotate(text, (length, index), xytext=(5, 0), textcoords="offset points", va="center", color=INK["ink"])
        axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
        axes.tick_params(axis="y", length=0, labelcolor=INK["ink"])
        axes.set_xlim(0, 1.3 * longest)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(x_label)

    height = max(1.2, 0.6 + 0.3 * len(bars))
    return Chart(name, title, note, draw_svg(name, title, draw, height=height), headers, tuple(rows))


def _headers(line: Line) -> list[str]:
    return [line.label, *(["±"] if line.error is not None else []), *(["low", "high"] if line.band is not None else [])]


def _cells(line: Line) -> dict[float, list[Cell]]:
    """Return what the table has of a curve at each x: its value, its error and the edges of its band."""
    cells: dict[float, list[Cell]] = {x: [y] for x, y in zip(line.x, line.y, strict=True)}
    for x, error in zip(line.x, line.error or [], strict=line.error is not None):
        cells[x].append(error)
    for x, interval in zip(line.x, line.band or [], strict=line.band is not None):
        cells[x] += interval or (None, None)
    return cells


def _blank(line: Line) -> list[Cell]:
    return [None] * len(_headers(line))


def _legend(axes: Axes, num_entries: int) -> None:
    if num_entries > 1:
        longest = max(len(label) for label in axes.get_legend_handles_labels()[1])
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            # Long names would run into each other on a narrow screen.
            ncols=1 if longest > _LONGEST_IN_COLUMNS else 3 if num_entries == 3 else 2,
            borderaxespad=0.2,
            handlelength=1.8,
            columnspacing=1.2,
        )


def _label(text: str) -> str:
    """Return a legend's text: short, not read as mathematics, and not hidden as matplotlib hides what starts with `_`."""
    short = text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
    return (f" {short}" if short.startswith("_") else short).replace("$", r"\$")


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
