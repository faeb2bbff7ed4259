"""How figures are written, the same in page, card and table: shares as percent, changes in points."""


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
