"""A row's values, each of the type that is asked for, or an error that names row, column and way out."""

import json
import math
from decimal import Decimal

from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.table_file import FileRow


def is_missing(row: FileRow, column: str) -> bool:
    """Say whether a column that the row has holds nothing: null, or blank text."""
    value = row.values.get(column, ...)
    return value is None or (isinstance(value, str) and not value.strip())


def text(row: FileRow, column: str, *, way_out: str) -> str:
    """Return a value as text that is not blank: 27, 27.0 and "27" are the same. `way_out` ends a message, behind "or"."""
    value = _value(row, column, way_out=way_out)
    written = as_text(value)
    if written is None or not written.strip():
        unusable = value is None or isinstance(value, str | float)
        if not unusable:
            raise ProblemsError(f'{row.where}: "{column}" is a {type(value).__name__}, neither text nor a number; {way_out}')
        given = "missing" if value is None else "empty" if isinstance(value, str) else repr(value)
        raise ProblemsError(f'{row.where}: "{column}" is {given}; give it a value, or take the row out')
    return _checked(row, column, written)


def text_or_blank(row: FileRow, column: str, *, way_out: str) -> str:
    """Return a text that may be blank, or missing, and then is empty."""
    return "" if column not in row.values or is_missing(row, column) else text(row, column, way_out=way_out)


def optional_text(row: FileRow, column: str) -> str | None:
    """Return a value as text, or nothing where there is none that could be written as text."""
    written = as_text(row.values.get(column))
    return written.strip() or None if written else None


def texts(row: FileRow, column: str, *, way_out: str) -> list[str]:
    """Return a list of texts and numbers, all as text, or a text that is such a list as JSON. It may be empty."""
    value = _value(row, column, way_out=way_out)
    if isinstance(value, str):
        value = parsed(row, column, value)
    if not isinstance(value, list):
        raise ProblemsError(f'{row.where}: "{column}" is a {type(value).__name__}, not a list; mend the row, or {way_out}')
    found = []
    for number, entry in enumerate(value, start=1):
        written = as_text(entry)
        if written is None or not written.strip():
            raise ProblemsError(f'{row.where}: entry {number} of "{column}" is {entry!r}, no text; mend the row')
        found.append(_checked(row, column, written))
    return found


def parsed(row: FileRow, column: str, written: str) -> object:
    """Return what a text holds as JSON."""
    try:
        return json.loads(written)
    except (ValueError, RecursionError) as error:
        raise ProblemsError(
            f'{row.where}: "{column}" is not valid JSON ({error}); mend the row, or fetch the file anew'
        ) from error


def as_text(value: object) -> str | None:
    """Return text and finite numbers as text: 27, 27.0 and "27" are the same."""
    match value:
        case bool():
            return None
        case str():
            return value
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case Decimal() if value.is_finite():
            return f"{value.normalize():f}"
        case _:
            return None


def _value(row: FileRow, column: str, *, way_out: str) -> object:
    if column not in row.values:
        raise ProblemsError(f'{row.where}: no "{column}"; the row has {row.columns_text}. Mend the row, or {way_out}')
    return row.values[column]


def _checked(row: FileRow, column: str, written: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in written):
        raise ProblemsError(f'{row.where}: "{column}" is no valid Unicode (a lone surrogate); mend the row')
    return written
