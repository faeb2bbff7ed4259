"""Are two answers the same number, set or expression? Math-Verify decides, in a `JudgeProcess` and never in a worker.

Its own time limit is `signal.alarm`, which fails off the main thread and can't interrupt a big-integer power: it is off,
and the process is killed instead. Units, words, bases and percentages are looked at first, because Math-Verify drops
units and bases, and words are products to it.
"""

import logging
import re
from functools import lru_cache

from math_verify import verify
from sympy import Basic, Expr, MatrixBase

from tokensqueeze.verifiers.latex_reader import read_latex
from tokensqueeze.verifiers.units import split_unit, units_contradict
from tokensqueeze.verifiers.written_math import plain_number, readable, same_plainly

Reading = Basic | MatrixBase | str

_BASED = re.compile(r"(?P<figures>[+-]?[0-9A-Za-z]+)\s*_\s*(?:\{\s*\(?(?P<braced>[0-9]{1,2})\)?\s*\}|(?P<bare>[0-9]))")
_NAMED = re.compile(r"[A-Za-z]\s*=\s*(?P<value>[^=]+)")
_SCIENTIFIC = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,4})")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:percent|%|\\%)\s*\}|\bpercent)$")
_TEXT = re.compile(r"\\(?:text[a-z]*|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '.-]+[^\W\d_]+)*\.?")
_SPACE_IN_WORDS = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_CLOCK = re.compile(r"[0-9]{1,2}:0[0-9]")
_LETTER_IN_BRACKETS = re.compile(r"\(\s*([A-Za-z])\s*\)")
_NOISE, _SMALL, _SMALL_SHARE = 1e-100, 1e-4, 1e-3
_FEWEST_LETTERS = 4
"""A plain gold answer of fewer letters may be a product, in which their order does not matter."""


class UnreadableGoldAnswer(ValueError):
    """Nothing can be compared with a gold answer that has no text."""


def equivalent(gold_answer: str, answer: str) -> bool:
    """Return whether two answers, both LaTeX or plain text without their box, are the same.

    Raises whatever sympy raises: an answer that can't be compared is no wrong answer.
    """
    gold, other = readable(gold_answer), readable(answer)
    if not gold:
        raise UnreadableGoldAnswer(gold_answer)
    if (same := _same_words(gold, other)) is not None:
        return same
    (gold, gold_unit), (other, unit) = split_unit(gold), split_unit(other)
    if units_contradict(gold_unit, unit):
        return False
    gold, other = _without_name(gold, other), _without_name(other, gold)
    if (in_one_base := _in_one_base(gold, other)) is None:
        return False
    return any(_same_mathematics(*pair) for pair in _percentages(*in_one_base))


def warm_up() -> None:
    """Load the parsers, which the first answer would else pay for (a tenth of a second or more)."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _same_mathematics("\\frac{\\sqrt{3}}{2}", "(0.5, x]")


def _same_mathematics(gold: str, answer: str) -> bool:
    if (same := same_plainly(gold, answer)) is not None:
        return same
    gold_reading, reading = _gold_reading(gold), _reading(answer)
    # A chain of inequalities and its interval are the same set, whichever of them is the gold answer.
    same = verify(gold_reading, reading, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    return same and not _rounded_away(gold_reading, reading)


def _rounded_away(gold: Reading, answer: Reading) -> bool:
    """Return whether two numbers differ in their first three figures, but are so near zero that Math-Verify does not see it."""
    if not (isinstance(gold, Expr) and isinstance(answer, Expr) and gold.is_number and answer.is_number):
        return False
    try:
        one, other = complex(gold.doit().evalf()), complex(answer.doit().evalf())
    except OverflowError:
        return False
    size = max(abs(one), abs(other))
    return _NOISE < size < _SMALL and abs(one - other) > _SMALL_SHARE * size


# The traces of a problem come one behind the other and share its gold answer.
@lru_cache(maxsize=64)
def _gold_reading(text: str) -> Reading:
    return _reading(text)


def _reading(text: str) -> Reading:
    if (list_of_words := _TEXT.fullmatch(text)) and "," in list_of_words[1]:
        text = list_of_words[1]
    text = text.removeprefix("\\approx").strip()
    if scientific := _SCIENTIFIC.fullmatch(text):
        text = f"{scientific[1]} \\times 10^{{{scientific[2]}}}"
    return read_latex(text)


def _same_words(gold: str, answer: str) -> bool | None:
    """Return whether two answers are the same words, case and spaces apart, or nothing if they may be mathematics.

    To Math-Verify words are products of letters: `listen` would be `silent`.
    """
    gold_text, text = (_LETTER_IN_BRACKETS.sub(r"\1", _TEXT.sub(r"\1", side)).strip() for side in (gold, answer))
    if plain_number(gold_text) is None and _plain(gold_text) == _plain(text):
        return True
    if _CLOCK.fullmatch(_plain(gold_text)) or _CLOCK.fullmatch(_plain(text)):
        return False  # 5:00 is no ratio
    is_text = _TEXT.fullmatch(gold) is not None or len(gold_text) >= _FEWEST_LETTERS
    return False if is_text and _WORDS.fullmatch(gold_text) and _WORDS.fullmatch(text) else None


def _plain(text: str) -> str:
    return _SPACE_IN_WORDS.sub("", text).casefold().rstrip(".")


def _without_name(text: str, beside: str) -> str:
    """Return the number of x = 58,500 where the other side names nothing: Math-Verify would read a pair behind the comma."""
    named = _NAMED.fullmatch(text)
    return named["value"] if named and "=" not in beside and plain_number(named["value"]) is not None else text


def _in_one_base(gold: str, answer: str) -> tuple[str, str] | None:
    """Return both without their base, or nothing if the bases differ: Math-Verify would drop them all the same.

    A question that asks for a base needs none in its answer.
    """
    gold_based, based = _BASED.fullmatch(gold), _BASED.fullmatch(answer)
    if gold_based and based and (gold_based["braced"] or gold_based["bare"]) != (based["braced"] or based["bare"]):
        return None
    return (gold_based["figures"] if gold_based else gold), (based["figures"] if based else answer)


def _percentages(gold: str, answer: str) -> list[tuple[str, str]]:
    """Return the pairs of which one has to agree: a question for per cent may be answered with the sign or without.

    A gold answer below one without the sign is taken as a share: 0.5 is 50 %, and not 0.5 %.
    """
    gold_number, number = _PERCENT.sub("", gold), _PERCENT.sub("", answer)
    if (gold_number == gold) == (number == answer):
        return [(gold_number, number)]
    if number == answer:
        return [(gold_number, number), (f"\\frac{{{gold_number}}}{{100}}", number)]
    share = (gold, f"\\frac{{{number}}}{{100}}")
    value = plain_number(gold)
    return [share] if value is not None and abs(value) < 1 else [(gold, number), share]
