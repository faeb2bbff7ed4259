"""How figures are written, the same in page, card and table: shares as percent, changes in points."""

from collections.abc import Sequence

PASS_RATES = {
    "0": "none",
    "(0, 0.25]": "to 25 %",
    "(0.25, 0.5]": "to 50 %",
    "(0.5, 0.75]": "to 75 %",
    "(0.75, 1)": "under all",
    "1": "all",
}
"""Bins of pass rates (`metrics.difficulty.BINS`) in words."""


def percent(share: float | None, decimals: int = 1) -> str:
    """0.927 → `92.7 %`."""
    return "–" if share is None else f"{100 * share:.{decimals}f} %"


def percent_with_error(share: float | None, error: float | None) -> str:
    """0.927, 0.006 → `92.7 ± 0.6 %`."""
    if share is None or error is None:
        return percent(share)
    return f"{100 * share:.1f} ± {100 * error:.1f} %"


def points(change: float | None) -> str:
    """0.076 → `+7.6 points`; −0.0004 → `±0.0 points`, since a sign would claim a direction."""
    if change is None:
        return "–"
    return "±0.0 points" if abs(change) < 0.0005 else f"{100 * change:+.1f} points".replace("-", "−")


def points_with_error(change: float | None, error: float | None) -> str:
    """0.076, 0.011 → `+7.6 points (±1.1)`."""
    return points(change) if error is None else f"{points(change)} (±{100 * error:.1f})"


def number(value: float | None, decimals: int = 1) -> str:
    """150.84 → `150.8`; 13337.2 → `13,337`; whole numbers without decimals."""
    if value is None:
        return "–"
    if float(value).is_integer() or abs(value) >= 1000:
        decimals = 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def number_with_error(value: float | None, error: float | None) -> str:
    """58.51, 0.9 → `58.5 ± 0.9`."""
    if value is None or error is None:
        return number(value)
    decimals = 0 if abs(value) >= 1000 else 1
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}"


def interval(edges: Sequence[float] | None, *, scale: float = 1, decimals: int = 1, sign: bool = False) -> str:
    """[0.829, 0.872], scale 100 → `82.9–87.2`; with `sign`, [−0.012, 0.034] → `[−1.2, +3.4]`; unknown: nothing."""
    if edges is None:
        return ""
    if sign:
        return f"[{', '.join(signed(scale * edge, decimals) for edge in edges)}]"
    return "–".join(number_at(scale * edge, decimals) for edge in edges)


def signed(value: float, decimals: int = 1) -> str:
    """7.62 → `+7.6`; −0.04 → `0.0`, since a sign would claim a direction."""
    written = f"{value:+,.{decimals}f}"
    return written[1:] if float(written.replace(",", "")) == 0 else written.replace("-", "−")


def number_at(value: float, decimals: int) -> str:
    """A number with so many decimals, thousands set off."""
    return f"{value:,.{decimals}f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """0.0132 → `0.013`; 0.00005 → `< 0.001`; unknown: `–`."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def signed_tokens(change: int) -> str:
    """-12 → `−12 tokens`; 1 → `+1 token`; 0 → `±0 tokens`."""
    sign = "+" if change > 0 else "−" if change < 0 else "±"
    return f"{sign}{counted(abs(change), 'token')}"


def duration(seconds: float) -> str:
    """8.25 → `8.2 s`; 95 → `1 min 35 s`; 5400 → `1 h 30 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(count: float, noun: str) -> str:
    """1, `problem` → `1 problem`; 600, `problem` → `600 problems`."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def plain(name: str) -> str:
    """`build_pairs` → `build pairs`."""
    return name.replace("_", " ")
