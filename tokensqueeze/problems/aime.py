"""AIME's answers: whole numbers from 000 to 999, in the data sets with leading zeros, in a box, or with a degree sign."""

import re

_DECORATION = re.compile(r"\\circ|\\degree|\\text\{\s*degrees?\s*\}|[$^{}°\s]")
_DIGITS = re.compile(r"[0-9]{1,3}(?:\.0+)?")


def whole_number(answer: str) -> str | None:
    """Return the number without leading zeros, or nothing if it is no whole number from 0 to 999."""
    bare = _DECORATION.sub("", answer)
    return str(int(float(bare))) if _DIGITS.fullmatch(bare) else None
