"""Is what a program has printed what it should have? As LiveCodeBench compares: line by line, numbers by their value."""

from decimal import Decimal, InvalidOperation


def same_output(expected: str, printed: str) -> bool:
    """Compare without the space around lines and around the whole; lines that differ are the same if all in them are numbers
    of equal value: 0.50 is 0.5, but 0.33 is not 1/3, and no rounding is forgiven."""
    expected_lines, printed_lines = (text.strip().split("\n") for text in (expected, printed))
    return len(expected_lines) == len(printed_lines) and all(map(_same_line, expected_lines, printed_lines))


def _same_line(expected: str, printed: str) -> bool:
    expected, printed = expected.strip(), printed.strip()
    if expected == printed:
        return True
    try:
        return [Decimal(word) for word in expected.split()] == [Decimal(word) for word in printed.split()]
    except InvalidOperation:
        return False
