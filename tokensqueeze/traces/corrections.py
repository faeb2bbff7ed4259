"""Which steps mend the one before them: a wrong step and its correction say one thing together, so they are one unit.

Alone, a wrong step can only be replaced by something as wrong, or its correction by something that assumes it; together
they can be replaced by the step done right.
"""

import re
from collections import Counter
from collections.abc import Sequence

_LEAD_IN = r"[\W_]*(?:(?:oh|but|and|so|ah|okay|ok)[\s,.!-]+)*"
_DOUBTS = re.compile(
    _LEAD_IN
    + r"""(?:
        wait | hmm+ | no(?=\s*[,.!:;—-]) | oops | sorry | actually | hold\s+on | on\s+second\s+thought
      | (?:let(?:'s|\s+me|\s+us)|i(?:'ll|\s+should|\s+need\s+to|\s+must)|we(?:\s+should|\s+need\s+to|\s+must))\s+
        (?:re-?(?:check|calculate|compute|consider|count|do|examine|evaluate|think|visit|verify|view)
         | double-?\s?check | check | verify | look\s+again | make\s+sure | correct | fix | go\s+back | try\s+again)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""Beginnings of a step that looks back at the one before it."""
_CONTRADICTS = re.compile(
    _LEAD_IN
    + r"""(?:
        however | i\s+(?:made|miscalculated|misread|forgot|was) | there(?:'s|\s+is|\s+was)\s+an?
      | (?:that|this|it)(?:'s|\s+(?:is|was|looks|seems|can't|cannot|isn't|wasn't|doesn't))
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""Beginnings that any step may have: they look back only where the first sentence says that something was wrong."""
_NEGATED = re.compile(
    r"\b(?:no|not|never|nothing|without|any|isn't|wasn't|aren't|didn't|don't|can't)\s+(?:\w+\s+){0,2}"
    r"(?:wrong|mistaken?|mistakes|incorrect|errors?)\b",
    re.IGNORECASE,
)
_SAYS_WRONG = re.compile(
    r"""\b(?:
        wrong(?:ly)? | mistake[ns]? | incorrect(?:ly)? | errors? | miscalculated | miscounted | misread | should\s+have\s+been
      | (?:not|\w+n't|cannot\s+be|can't\s+be)\s+(?:\w+\s+)?(?:right|correct) | forgot | overlooked
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_SHOULD_BE = re.compile(r"\b(?:should|must|has\s+to)\s+(?:actually\s+|really\s+)?be\b|\binstead\b", re.IGNORECASE)
_CONFIRMS = re.compile(
    r"\b(?:yes|(?:is|are|was|were)\s+(?:indeed\s+)?(?:correct|right)|confirm(?:s|ed)?|checks\s+out)\b", re.IGNORECASE
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def corrected_units(step_texts: Sequence[str]) -> list[range]:
    """Return runs of steps, all steps in order: a step, and those behind it that take back the one before them."""
    units: list[range] = []
    for index, text in enumerate(step_texts):
        if units and takes_back(text, step_texts[index - 1]):
            units[-1] = range(units[-1].start, index + 1)
        else:
            units.append(range(index, index + 1))
    return units


def takes_back(text: str, before: str) -> bool:
    """Tell whether a step takes back the one before it; a re-check that confirms it does not.

    It must look back to begin with, and there must be a sign that something changed: it says that something was wrong, or
    the step before ended saying so; or it ends with another number, and says what should be or computes the same over.
    """
    text, before = text.replace("’", "'"), before.replace("’", "'")
    first, last_before = _sentences(text)[0], " ".join(_sentences(before)[-2:])
    if not _DOUBTS.match(text):
        return bool(_CONTRADICTS.match(text)) and _says_wrong(first)
    if _says_wrong(text) or (_says_wrong(last_before) and not _CONFIRMS.search(text)):
        return True
    numbers, numbers_before = _NUMBER.findall(text), _NUMBER.findall(before)
    if not numbers or not numbers_before or numbers[-1] == numbers_before[-1]:
        return False
    return bool(_SHOULD_BE.search(text)) or _restates(numbers, numbers_before)


def _sentences(text: str) -> list[str]:
    return _SENTENCE_END.split(text.strip())


def _says_wrong(text: str) -> bool:
    return bool(_SAYS_WRONG.search(_NEGATED.sub("", text)))


def _restates(numbers: Sequence[str], numbers_before: Sequence[str]) -> bool:
    """Tell whether at least two, and half, of what the step before computed with is computed with again."""
    given = Counter(number for number in numbers_before if number != numbers_before[-1])
    again = (given & Counter(numbers)).total()
    return again >= 2 and 2 * again >= given.total()
