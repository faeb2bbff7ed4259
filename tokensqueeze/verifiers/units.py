"""The unit behind an answer: taken off before answers are compared, and kept to see that two units don't contradict.

A unit is what stands in `\\text{}` at the end, or plain words from the table; `2t` and `5c` are products, not tons and cents.
"""

import re

_SPELLINGS = """
mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre; in inch inches; ft foot feet; yd yard
mi mile; mg milligram; g gram; kg kilogram; lb pound; oz ounce; ml milliliter millilitre; l liter litre; gal gallon; qt quart
pt pint; s sec second; min minute; h hr hour; day; week; mo month; yr year; ms millisecond; am; pm; mph mileperhour milesperhour
kmh kmperhour kilometersperhour; cent; dollar usd buck; euro; deg degree; rad radian
"""
_CANONICAL = {spelling: words.split()[0] for words in _SPELLINGS.replace("\n", ";").split(";") for spelling in words.split()}
"""Spelling to the unit's first spelling."""
_COUNTED_WORDS = "unit coin apple student people person point way digit acre mark tile meal clip"
_COUNTED = set(_COUNTED_WORDS.split())
"""Apples and clips contradict nothing."""
_JOINING = {"per", "square", "cubic", "sq", "cu"}

# Words that change a value: with one of them, what follows the number is no unit.
_VALUE_WORD = re.compile(
    r"\b(?:or|and|not|no|than|more|less|least|most|if|when|hundred|thousand|million|billion|trillion|dozen|half|times|percent"
    r"|percentage|pct|base|mod|modulo|squared|cubed|factorial|over|plus|minus|pi|to|is|none|undefined|i)\b",
    re.IGNORECASE,
)
_POWER = r"(?P<power>\s*\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9]))?"
_WRAPPED = re.compile(rf"\\(?:text[a-z]*|math(?:rm|bf|it)|mbox)\s*\{{(?P<unit>[^{{}}]*)\}}{_POWER}$")
_CIRCLE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)$")
_PLAIN = re.compile(rf"(?<=[0-9}}])(?P<space>\s*)(?P<unit>[A-Za-z.]+(?:[ /]+[A-Za-z.]+){{0,4}}){_POWER}$")
_COUNTS_AS_VALUE = re.compile(r"[0-9A-Za-z]")
_FIGURE, _SQUARE, _CUBIC = re.compile(r"-?[0-9]"), re.compile(r"\b(?:square|sq)\b"), re.compile(r"\b(?:cubic|cu)\b")
_NOT_IN_NAMES = re.compile(r"\b(?:square|cubic|sq|cu)\b|[^a-z]")


def split_unit(answer: str) -> tuple[str, str]:
    """Return an answer without the unit behind it, and the unit, which is "" if there is none."""
    if wrapped := _WRAPPED.search(answer):
        rest, unit = answer[: wrapped.start()].rstrip(" ,~"), wrapped["unit"].strip()
        is_unit = unit[:1].isalpha() and not _VALUE_WORD.search(unit) and _COUNTS_AS_VALUE.search(rest)
        return (rest, unit + (wrapped["power"] or "")) if is_unit else (answer, "")
    if circle := _CIRCLE.search(answer):
        return answer[: circle.start()], "deg"
    if plain := _PLAIN.search(answer):
        words = plain["unit"].replace("/", " ").split()
        if plain["space"] or min(map(len, words)) > 1:
            known = (_canonical(word) or _singular(word.lower()) in _COUNTED | _JOINING for word in words)
            unit = plain["unit"] + (plain["power"] or "")
            return (answer[: plain.start()], unit) if all(known) else (answer, "")
    return answer, ""


def units_contradict(one: str, other: str) -> bool:
    """Return whether both are units of the table and not the same, or both have a power and not the same."""
    first, second, power, other_power = _canonical(one), _canonical(other), _power(one), _power(other)
    names_differ = first is not None and second is not None and first != second
    return names_differ or (power is not None and other_power is not None and power != other_power)


def _power(unit: str) -> int | None:
    if figure := _FIGURE.search(unit):
        return int(figure[0])
    return 2 if _SQUARE.search(unit) else 3 if _CUBIC.search(unit) else None


def _canonical(unit: str) -> str | None:
    name = _NOT_IN_NAMES.sub("", unit.lower())
    return _CANONICAL.get(name) or _CANONICAL.get(_singular(name))


def _singular(word: str) -> str:
    return word.removesuffix("s") if len(word) > 2 else word
