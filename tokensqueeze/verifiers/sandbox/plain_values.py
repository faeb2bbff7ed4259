"""Values between a program and those who check it, as JSON: what arrives is plain data, whatever class it was.

An object whose `__eq__` always says yes is equal to nothing here. Numbers, text, lists and None stand for themselves;
other kinds are an object with one key, their name.
"""

from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any

Refer = Callable[[Any], Any]
"""Turns what is not plain into JSON, or raises `TypeError`."""

_LONG_INTEGER_BITS = 8000
"""Python refuses to write longer ones in decimal."""
_NUMBERS = {"Decimal": "decimal", "Fraction": "fractions"}
"""Kinds whose modules are loaded where they occur."""


def encode(value: Any, refer: Refer) -> Any:
    """Return a value in JSON; subclasses of plain types lose what they add."""
    match value:
        case None | bool() | float() | str():
            return value
        case int():
            return value if value.bit_length() < _LONG_INTEGER_BITS else {"int": hex(value)}
        case list():
            return [encode(item, refer) for item in list.__iter__(value)]
        case tuple():
            return {"tuple": [encode(item, refer) for item in tuple.__iter__(value)]}
        case dict():
            return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in dict.items(value)]}
        case set():
            return {"set": [encode(item, refer) for item in set.__iter__(value)]}
        case frozenset():
            return {"frozenset": [encode(item, refer) for item in frozenset.__iter__(value)]}
        case bytes():
            return {"bytes": bytes.hex(value)}
        case bytearray():
            return {"bytearray": bytearray.hex(value)}
        case complex():
            return {"complex": [value.real, value.imag]}
        case range():
            return {"range": [value.start, value.stop, value.step]}
        case deque():
            return {"deque": [encode(item, refer) for item in deque.__iter__(value)]}
    if (kind := type(value).__name__) in _NUMBERS and type(value).__module__ == _NUMBERS[kind]:
        return {kind: str(value)}
    return refer(value)


def decode(coded: Any, lookup: Callable[[Any], Any]) -> Any:
    """Return the value; `lookup` has the kinds that are none of these. Raises `ValueError` or `TypeError` for bad JSON."""
    if isinstance(coded, list):
        return [decode(item, lookup) for item in coded]
    if not isinstance(coded, dict):
        return coded
    ((kind, content),) = coded.items()
    match kind:
        case "int":
            return int(content, 16)
        case "tuple":
            return tuple(decode(item, lookup) for item in content)
        case "dict":
            return {decode(key, lookup): decode(item, lookup) for key, item in content}
        case "set":
            return {decode(item, lookup) for item in content}
        case "frozenset":
            return frozenset(decode(item, lookup) for item in content)
        case "bytes":
            return bytes.fromhex(content)
        case "bytearray":
            return bytearray.fromhex(content)
        case "complex":
            return complex(*content)
        case "range":
            return range(*content)
        case "deque":
            return deque(decode(item, lookup) for item in content)
    if kind in _NUMBERS:
        return getattr(import_module(_NUMBERS[kind]), kind)(content)
    return lookup(coded)
