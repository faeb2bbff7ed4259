"""Answers as they are written: look-alike characters, what stands around an answer, and what needs no mathematics.

Gold answers and answers go through the same door, and nothing here turns one value into another.
"""

import re
import unicodedata
from fractions import Fraction
from itertools import groupby

TOO_LONG = 10_000
"""Characters; a longer answer is compared as text and as an integer only."""

_SIGNS = {
    "−": "-",  # U+2212, the minus sign proper
    "‐": "-",
    "‑": "-",
    "‒": "-",
    "–": "-",
    "—": "-",
    "×": "\\times ",
    "⋅": "\\cdot ",
    "·": "\\cdot ",
    "∙": "\\cdot ",
    "∗": "*",
    "÷": "\\div ",
    "√": "\\sqrt ",
    "∞": "\\infty ",
    "°": "^\\circ ",
    "º": "^\\circ ",
    "±": "\\pm ",
    "∓": "\\mp ",
    "≤": "\\le ",
    "⩽": "\\le ",
    "≥": "\\ge ",
    "⩾": "\\ge ",
    "≠": "\\ne ",
    "≈": "\\approx ",
    "∈": "\\in ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∅": "\\emptyset ",
    "′": "'",
    "“": '"',
    "”": '"',
    "’": "'",
    "⟨": "\\langle ",
    "⟩": "\\rangle ",
    "٫": ".",
    "٬": ",",
    "％": "\\%",
    "￥": "¥",
}
_GREEK = {
    letter: f"\\{unicodedata.name(letter).rsplit(' ', 1)[-1].lower().replace('lamda', 'lambda')} "
    for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
}
_GREEK |= {letter: command.title() for letter, command in _GREEK.items() if letter.isupper()}
_SCRIPTS = {"<super>": "^", "<sub>": "_"}
_VULGAR, _FRACTION_SLASH = "<fraction>", "⁄"

_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*(?=[()\[\]|])|\\(?:displaystyle|underline)(?![a-zA-Z])|\\(?:text)?color\{[a-zA-Z]+\}"
)
_SPACES = re.compile(r"(?:(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])|\s)+")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\\[,;: ]|\{,\}|(?:\\!)?,?\s?\\!,?|~)\s*(?=[0-9]{3}(?![0-9]))")
_SPACED_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?")
_DOLLAR = re.compile(r"\\?\$")
_WRAPPERS = (("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"))
_END = re.compile(r"\\+$|(?<!\\right)(?<!\\left)(?<!\.)\.$")

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"(?P<sign>[+-]?)(?P<whole>{_DIGITS})?(?:\.(?P<places>[0-9]*))?")
_RATIO = re.compile(
    r"(?P<sign>[+-]?)\s*(?:(?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)"
    r"|\\[dtc]?frac\s*(?:\{(?P<braced>[+-]?[0-9]+)\}\s*\{(?P<under>[0-9]+)\}|(?P<digit>[0-9])(?P<other>[0-9])))"
)
_REPEATING = re.compile(r"(?P<sign>[+-]?)(?P<whole>[0-9]*)\.(?P<places>[0-9]*)\\overline\{?(?P<again>[0-9]+)\}?")
_PLAIN_NUMBER = 1_000
"""Characters of a number that is read here."""

_ROUNDING = Fraction(2, 10**6)
_TINY_SHARE = Fraction(1, 1000)


def readable(text: str) -> str:
    """Return an answer in ASCII and LaTeX as far as its characters have such a spelling, without what merely surrounds it.

    Characters that no answer has (control characters, lone surrogates) become U+FFFD, which equals no digit.
    """
    if not text.isascii() or not text.isprintable():
        text = _spelled_out(text)
    text = _THOUSANDS.sub("", text)
    text = _LAYOUT.sub("", _SPACES.sub(" ", _DOLLAR.sub("", text)))
    text = _unwrapped(text)
    return text.replace(" ", "") if _SPACED_THOUSANDS.fullmatch(text) else text


def same_plainly(gold_answer: str, answer: str) -> bool | None:
    """Return whether two answers are the same where text, integers, decimals or fractions tell, else nothing.

    Decimals are the same where Math-Verify finds them so, after rounding to six places; but one near zero must also
    agree in its first three figures, because every small number rounds to zero.
    """
    gold_answer, answer = gold_answer.strip(), answer.strip()
    if gold_answer == answer:
        return True
    if _INTEGER.fullmatch(gold_answer) and _INTEGER.fullmatch(answer):
        return _figures(gold_answer) == _figures(answer)
    gold, other = plain_number(gold_answer), plain_number(answer)
    if gold is None or other is None:
        return None
    if gold == other:
        return True
    difference = abs(gold - other)
    is_decimal = "." in gold_answer or "." in answer
    if not is_decimal or difference > _ROUNDING or difference > _TINY_SHARE * max(abs(gold), abs(other)):
        return False
    return None


def plain_number(text: str) -> Fraction | None:
    """Return the value of an integer, decimal or fraction, or nothing where a text is none of these."""
    if len(text) > _PLAIN_NUMBER:
        return None
    if (decimal := _DECIMAL.fullmatch(text)) and (decimal["whole"] or decimal["places"]):
        return Fraction(f"{decimal['sign']}{(decimal['whole'] or '0').replace(',', '')}.{decimal['places'] or '0'}")
    if ratio := _RATIO.fullmatch(text):
        above = ratio["above"] or ratio["braced"] or ratio["digit"]
        below = int(ratio["below"] or ratio["under"] or ratio["other"])
        return Fraction(int(above), below) * (-1 if ratio["sign"] == "-" else 1) if below else None
    if repeating := _REPEATING.fullmatch(text):
        once, scale = Fraction(f"{repeating['whole'] or 0}.{repeating['places'] or 0}"), 10 ** len(repeating["places"])
        again = Fraction(int(repeating["again"]), 10 ** len(repeating["again"]) - 1) / scale
        return (once + again) * (-1 if repeating["sign"] == "-" else 1)
    return None


def is_integer(text: str) -> bool:
    """Return whether `same_plainly` compares a text as an integer, whatever its length."""
    return _INTEGER.fullmatch(text.strip()) is not None


def without_surrogates(text: str) -> str:
    """Return the text with U+FFFD for each lone surrogate, which no table and no JSON file can hold."""
    return text.encode(errors="surrogatepass").decode(errors="replace") if not text.isascii() else text


def _spelled_out(text: str) -> str:
    runs = groupby(text, key=lambda letter: _SCRIPTS.get(_decomposition(letter)[0]))
    spelled = ((script, "".join(_spelling(letter) for letter in run)) for script, run in runs)
    return "".join(f"{script}{{{run}}}" if script else run for script, run in spelled)


def _decomposition(letter: str) -> list[str]:
    """Return the kind of a character's compatibility decomposition and its parts, or an empty kind."""
    return ("" if letter.isascii() else unicodedata.decomposition(letter)).split() or [""]


def _spelling(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() or letter.isspace() else "\ufffd"
    if (known := _SIGNS.get(letter) or _GREEK.get(letter)) is not None:
        return known
    category = unicodedata.category(letter)
    if category == "Nd":
        return str(unicodedata.decimal(letter))
    if category == "Cf":
        return ""  # zero-width spaces and marks of direction
    if category in ("Cc", "Cs", "Co", "Cn"):
        return "\ufffd"
    if _decomposition(letter)[0] == _VULGAR:
        above, _, below = unicodedata.normalize("NFKC", letter).partition(_FRACTION_SLASH)
        return f"\\frac{{{above}}}{{{below}}}" if below else letter
    plain = unicodedata.normalize("NFKC", letter)
    return "".join(_SIGNS.get(part) or _GREEK.get(part) or part for part in plain) if plain != letter else letter


def _unwrapped(text: str) -> str:
    while True:
        before = text
        text = _END.sub("", text.strip())
        for opening, closing in _WRAPPERS:
            if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
                inner = text[len(opening) : -len(closing)]
                text = text if opening in inner or closing in inner else inner
        if text == before:
            return text


def _figures(integer: str) -> str:
    figures = integer.lstrip("+-").lstrip("0")
    return "-" + figures if figures and integer.startswith("-") else figures
