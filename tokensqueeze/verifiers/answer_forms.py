"""Where a completion gives its answer: in a box, between tags, behind `####`, as the last number, in a closing phrase.

Each form is one function of the text behind the thinking, linear in its length: models loop.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from tokensqueeze.config import AnswerForm
from tokensqueeze.verifiers.boxed import last_boxed

_TAG = re.compile(r"<(?P<end>/?)answer>", re.IGNORECASE)
_MARKER = "####"
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
# The longest run that could be one number; commas that don't separate thousands are dealt with afterwards.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)}])[-−–]\s?)?(?:\\?\$)?"
    r"(?P<number>\\[dt]?frac\s?\{\s?[0-9]+\s?\}\s?\{\s?[0-9]+\s?\}"
    r"|(?<![^\W\d_])(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:\s?/\s?[0-9]+)?)(?P<percent>\s?\\?%)?"
)
_THOUSANDS_ONLY = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")

_LETTER = r"(?:\*\*|__)?[(\[]?(?:\\(?:text|textbf|mathrm|mathbf)\{)?[(\[]?(?P<letter>[A-Z])\b[)\]}.:*_]*"
_CLOSING_PHRASE = re.compile(
    rf"\b(?:answer|choice|option)\b(?:\s+(?:is|would be|should be|must be|choice|option))*\s*[:=]?\s*\$?{_LETTER}",
    re.IGNORECASE,
)
_REASON = re.compile(r"[\s,;:*_–—-]*(?:because|since|as|for|which|given|due|so|$)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[\w)])[.;]\s")
_LAST_LINE = re.compile(rf"(?:option|choice|answer)?\s*:?\s*\$?{_LETTER}\$?")


def extract_answer(completion: str, think_end: str, forms: Sequence[AnswerForm] = ("boxed",)) -> str | None:
    """Return the answer behind the last end of thinking in the first form that finds one, or nothing.

    A completion that never ends its thinking is searched whole.
    """
    text = completion.rpartition(think_end)[2]
    return next((answer for form in forms if (answer := _FORMS[form](text)) is not None), None)


def no_answer_cause(forms: Sequence[AnswerForm]) -> str:
    return "no_boxed" if list(forms) == ["boxed"] else "no_answer_found"


def _last_tagged(text: str) -> str | None:
    best, start = None, None
    for tag in _TAG.finditer(text):
        if not tag["end"]:
            start = tag.end()
        elif start is not None:
            best = text[start : tag.start()].strip() or best
            start = None
    return None if best is None else last_boxed(best) or best


def _behind_hash(text: str) -> str | None:
    for piece in reversed(text.split(_MARKER)[1:]):
        if line := _THOUSANDS.sub("", piece.partition("\n")[0].replace("$", "")).strip(" \t\r#*"):
            return line
    return None


def _last_number(text: str) -> str | None:
    last = _last_match(_NUMBER, text)
    if last is None:
        return None
    number, sign = last["number"], "-" if last["sign"] else ""
    if "," in number:
        number = number.rstrip(",")
        plain = number.replace(",", "")
        is_list = "," in number and not _THOUSANDS_ONLY.match(number)
        number, sign = (number.rpartition(",")[2], "") if is_list else (plain, sign)
    return f"{sign}{number}{'%' if last['percent'] else ''}"


def _closing_phrase(text: str) -> str | None:
    """Return the letter that is the last line, else that of the last "the answer is (B) Paris", with what stands behind it."""
    if alone := _LAST_LINE.fullmatch(text.rstrip().rpartition("\n")[2].strip()):
        return alone["letter"]
    last = _last_match(_CLOSING_PHRASE, text)
    if last is None or not last["letter"].isupper():
        return None
    rest = text[last.end() :].partition("\n")[0]
    # "The answer is B. It lies on the Seine": another sentence is no part of the answer.
    ended = last[0].rstrip("*_").endswith(".") and rest[:1].isspace()
    rest = "" if ended or _REASON.match(rest) else _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" *_$.,!\t")
    return f"{last['letter']}) {rest}" if rest else last["letter"]


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


_FORMS: Mapping[AnswerForm, Callable[[str], str | None]] = {
    "boxed": last_boxed,
    "answer_tag": _last_tagged,
    "hash": _behind_hash,
    "last_number": _last_number,
    "choice_phrase": _closing_phrase,
}
