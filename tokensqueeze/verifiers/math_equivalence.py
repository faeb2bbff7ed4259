"""Are two answers the same number, set or expression? Math-Verify decides, in a `JudgeProcess` and never in a worker.

Math-Verify's own time limit is `signal.alarm`, which fails off the main thread and can't interrupt a big-integer power.
It is off here: the process is killed instead.
"""

import logging
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

_EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


class UnreadableGoldAnswer(ValueError):
    """Nothing can be compared with a gold answer that has no mathematical reading and no text."""


def equivalent(gold_answer: str, answer: str) -> bool:
    """Return whether two answers, both LaTeX or plain text without their box, are the same.

    Raises whatever sympy raises: an answer that can't be compared is no wrong answer.
    """
    gold_readings = _gold_readings(gold_answer)
    if not gold_readings:
        raise UnreadableGoldAnswer(gold_answer)
    failure: Exception | None = None
    for gold in gold_readings:
        for reading in _readings(answer):
            try:
                if verify(gold, reading, timeout_seconds=None, raise_on_error=True):
                    return True
            except Exception as error:  # another pair of readings may still agree; if none does, it is raised
                failure = failure or error
    if failure:
        raise failure
    return False


def warm_up() -> None:
    """Load the parsers, which the first answer would else pay for (a tenth of a second or more)."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    equivalent("\\frac{1}{2}", "0.5")


# The traces of a problem come one behind the other and share its gold answer.
@lru_cache(maxsize=64)
def _gold_readings(text: str) -> list[Any]:
    return _readings(text)


def _readings(text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", _EXTRACTION, parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]
