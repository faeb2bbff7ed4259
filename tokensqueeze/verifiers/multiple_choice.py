"""Multiple choice, as in MMLU-Pro (ten options) and GPQA (four): a letter, an option's text, or both.

A letter that contradicts the text beside it is no answer to either; what fits two options is wrong.
"""

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache

from tokensqueeze.config import AnswerForm
from tokensqueeze.verifiers.answer_forms import extract_answer, no_answer_cause
from tokensqueeze.verifiers.verdict import Answered, Judgement
from tokensqueeze.verifiers.written_math import TOO_LONG, readable, same_plainly, without_surrogates

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_TEXT_MACRO = re.compile(r"\\(?:text[a-z]*|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_NAMED = r"(?:the\s+)?(?:(?:option|choice|answer)\s*:?\s*)?"
_LONE_LETTER = re.compile(rf"{_NAMED}[(\[]?([A-Z])[)\].:]*", re.IGNORECASE)
# "A -3" is no dash between letter and text, but the text of an option.
_LETTER_AND_TEXT = re.compile(
    rf"{_NAMED}(?:[(\[]([A-Z])[)\]]|([A-Z])(?:\s*[).:]|\s+-(?=\s)|\s+(?=\()))\s*(.+)", re.DOTALL | re.IGNORECASE
)
# "A) or B)" and "A, B" take back what the first letter said.
_ANOTHER_LETTER = re.compile(r"(?:\b(?:or|and)\b|[,/&])\s*[(\[]?[A-Z][)\].:]*(?![\w'])")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Choice:
    """The right letter, and the options' texts in the order of their letters; without texts only letters count."""

    letter: str
    options: tuple[str, ...] = ()


class ChoiceVerifier(AbstractContextManager["ChoiceVerifier"]):
    """Judges letters and option texts. It starts no process."""

    def __init__(self, *, think_end: str, answer_forms: Sequence[AnswerForm] = ("boxed",)) -> None:
        self._think_end = think_end
        self._answer_forms = answer_forms

    def __exit__(self, *exception: object) -> None:
        """Nothing to end."""

    def judge(self, items: Sequence[Answered]) -> list[Judgement]:
        """Return one judgement per item, in order. A gold answer that is no choice is `unverifiable: gold`."""
        return [self._judge(item) for item in items]

    def _judge(self, item: Answered) -> Judgement:
        if item.finish_reason == "length":
            return Judgement("incorrect", None, "truncated")
        answer = extract_answer(item.text, self._think_end, self._answer_forms)
        if answer is None:
            return Judgement("no_answer", None, no_answer_cause(self._answer_forms))
        answer = without_surrogates(answer)
        gold = read_gold(item.gold_answer)
        if gold is None:
            return Judgement("unverifiable", answer, "gold")
        if len(answer) > TOO_LONG:
            return Judgement("incorrect", answer, None)
        chosen = read_choice(answer, gold.options)
        cause = "contradictory" if chosen.contradictory else None
        return Judgement("correct" if chosen.letter == gold.letter else "incorrect", answer, cause)


@lru_cache(maxsize=64)  # the traces of a problem come one behind the other
def read_gold(gold_answer: str) -> Choice | None:
    """Read "B" or {"letter": "B", "options": ["…", …]}, or nothing if it is neither."""
    text = gold_answer.strip()
    if len(text) == 1 and text.upper() in LETTERS:
        return Choice(text.upper())
    try:
        gold = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match gold:
        case {"letter": str(letter), "options": [*options]} if all(isinstance(option, str) for option in options):
            known = LETTERS[: len(options)]
            letter = letter.strip().upper()
            return Choice(letter, tuple(options)) if len(letter) == 1 and letter in known else None
        case {"letter": str(letter), **rest} if "options" not in rest:
            return read_gold(letter) if len(letter.strip()) == 1 else None
    return None


@dataclass(frozen=True)
class Chosen:
    """The letter that an answer means, or none if it means several or is no option."""

    letter: str | None = None
    contradictory: bool = False
    """It names a letter, and beside it the text of another option."""


def read_choice(answer: str, options: Sequence[str] = ()) -> Chosen:
    """Read a letter, an option's text or both. Where an option's text is itself a letter, the letter of the list counts."""
    plain = _without_macros(readable(answer))
    known = LETTERS[: len(options)] if options else LETTERS
    if (lone := _LONE_LETTER.fullmatch(plain)) and (letter := lone[1].upper()) in known:
        return Chosen(letter)
    fitting = [letter for letter, option in zip(known, options, strict=False) if _same_text(option, answer)]
    if fitting:
        return Chosen(fitting[0] if len(fitting) == 1 else None)
    both = _LETTER_AND_TEXT.fullmatch(plain)
    if both is None or (letter := (both[1] or both[2]).upper()) not in known:
        return Chosen()
    beside = both[3][1:-1] if both[3].startswith("(") and both[3].endswith(")") else both[3]
    # The phrase may go on: (B) Paris, which lies on the Seine.
    if options and _begins_with(beside, options[known.index(letter)]):
        return Chosen(letter)
    if _ANOTHER_LETTER.match(beside) or _LONE_LETTER.fullmatch(beside):
        return Chosen()
    # What is no option's text is said of the letter: (B) because it is the capital.
    return Chosen(contradictory=True) if any(_begins_with(beside, option) for option in options) else Chosen(letter)


def _same_text(option: str, answer: str) -> bool:
    one, other = readable(option), readable(answer)
    return same_plainly(one, other) is True or _folded(one) == _folded(other)


def _begins_with(text: str, option: str) -> bool:
    folded, beginning = _folded(readable(text)), _folded(readable(option))
    return _same_text(option, text) or (folded.startswith(beginning) and not folded[len(beginning)].isalnum())


def _folded(text: str) -> str:
    return _SPACES.sub(" ", _without_macros(text)).rstrip(".").casefold()


def _without_macros(text: str) -> str:
    return _TEXT_MACRO.sub(r"\1", text).strip()
