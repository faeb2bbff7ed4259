"""A drawing of matplotlib's as an SVG element for a page: its text stays text, its colours are the page's own variables."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Literal

from tokensqueeze.errors import MissingPackageError

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
except ImportError as error:
    raise MissingPackageError("the report's charts need matplotlib: pip install 'tokensqueeze[run]'") from error

# What a drawing is made with comes from here, so that one place says how to install it.
__all__ = ["INK", "Axes", "Colour", "FuncFormatter", "MaxNLocator", "PercentFormatter", "draw_svg"]

Colour = Literal["ink", "muted", "grid", "base", "squeezed", "chosen", "rejected", "third", "blue", "gold", "pink", "green"]

# Placeholders that matplotlib passes through and the page's style sheet fills in, one way by day and another by night.
INK: dict[Colour, str] = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "base": "#040404",
    "squeezed": "#050505",
    "chosen": "#060606",
    "rejected": "#070707",
    "third": "#080808",
    "blue": "#090909",
    "gold": "#0a0a0a",
    "pink": "#0b0b0b",
    "green": "#0c0c0c",
}
_WIDTH_INCHES, _HEIGHT_INCHES = 5.2, 3.0
_SETTINGS: dict[str, object] = {
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK["muted"],
    "axes.labelcolor": INK["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "text.color": INK["ink"],
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "path.simplify": True,
}


def draw_svg(name: str, title: str, draw: Callable[[Axes], None], *, height: float = _HEIGHT_INCHES) -> str:
    """Return what `draw` draws; `name` keeps its ids apart from those of other drawings on the page."""
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):  # type: ignore[arg-type]
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # The page's reader has the font for it; matplotlib's own is only measured with.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
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
    for colour, placeholder in INK.items():
        body = body.replace(placeholder, f"var(--{colour})")
    body = re.sub(r"\n\s*", "\n", body)
    return (
        f'<svg viewBox="{view_box[1]}" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{_escaped(title)}</title>{body}</svg>'
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
