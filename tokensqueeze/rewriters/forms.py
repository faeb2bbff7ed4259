"""Which texts for one step are the same form: written differently, but taking the same way to their result.

The draws of a form stand in for one another as evidence of how dependable it is. A form should be coarse enough that draws
repeat it, and fine enough that a gamble and the same step worked out are two forms.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

from tokensqueeze.schema import Candidate

Form = Literal["masked_numbers", "masked_content", "length_class", "edit_cluster"]

_LENGTH_CLASS_RATIO = 1.25
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# "$5 for apples and $7" is money: a formula's dollar signs touch what they enclose, and no digit follows it.
_LATEX = re.compile(r"\$\$.+?\$\$|(?<!\\)\$(?!\s)(?:\\.|[^$\\\n])+?(?<!\s)\$(?!\d)|\\\[.+?\\\]|\\\(.+?\\\)", re.DOTALL)
_RELATION = re.compile(r"[=<>≈≤≥]|\\(?:approx|leq?|geq?|equiv)(?![a-zA-Z])")
# "I" and "a" are words; the letter behind an apostrophe is the end of one; "2x" and "x1" hold variables.
_VARIABLE = re.compile(r"(?<![^\W\d])(?<!['’])(?![aAI]\b)[^\W\d_](?:_\w+)?(?![^\W\d]|['’])")
_NAME = re.compile(r"(?<=[\w,;:] )[A-Z][a-z]+\b")
_BESIDE_A_SIGN = re.compile(r"\s*([^\w\s])\s*")
_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")


def forms_of(candidates: Sequence[Candidate], form: Form, *, max_edit_distance: float) -> list[int]:
    """Return the number of each candidate's form; forms are numbered as they first appear.

    `max_edit_distance`, of `edit_cluster` alone, is a share of the longer text's words and signs.
    """
    match form:
        case "masked_numbers":
            return _numbered([masked_numbers(candidate.text) for candidate in candidates])
        case "masked_content":
            return _numbered([masked_content(candidate.text) for candidate in candidates])
        case "length_class":
            return _numbered([length_class(len(candidate.token_ids)) for candidate in candidates])
        case "edit_cluster":
            return _edit_clusters(candidates, max_edit_distance)


def masked_numbers(text: str) -> str:
    return _NUMBER.sub("#", text)


def masked_content(text: str) -> str:
    """Return the text without what the problem put there: numbers, variables, names, formulas, case and white space.

    A formula leaves its relation signs behind: "$=$" is one shot, "$==$" is worked out.
    """
    text = " ".join(_LATEX.sub(_relations, text).split())
    text = _BESIDE_A_SIGN.sub(r"\1", _NAME.sub("@", text))
    return masked_numbers(_VARIABLE.sub("%", text)).casefold()


def _relations(formula: re.Match[str]) -> str:
    return f"${''.join(_RELATION.findall(formula.group()))}$"


def length_class(num_tokens: int) -> int:
    """Return the class of a length: each begins at 1.25 times the last one's beginning."""
    return math.floor(math.log(max(1, num_tokens), _LENGTH_CLASS_RATIO))


def edit_distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Return the Levenshtein distance: a column of the table at a time, as bits of two integers (Myers 1999, Hyyrö 2003)."""
    if not one:
        return len(other)
    places: dict[Hashable, int] = {}
    for index, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << index
    all_bits, last_bit = (1 << len(one)) - 1, 1 << (len(one) - 1)
    rises, falls, distance = all_bits, 0, len(one)
    for item in other:
        equal = places.get(item, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        right_rises, right_falls = falls | ~(diagonal | rises), diagonal & rises
        distance += bool(right_rises & last_bit) - bool(right_falls & last_bit)
        right_rises, right_falls = right_rises << 1 | 1, right_falls << 1
        rises = (right_falls | ~(diagonal | right_rises)) & all_bits
        falls = right_rises & diagonal & all_bits
    return distance


def _numbered(labels: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels]


def _edit_clusters(candidates: Sequence[Candidate], max_edit_distance: float) -> list[int]:
    """Cluster by leaders: each text joins the nearest leader within the distance, or leads a cluster of its own.

    What is drawn most goes first, so that leaders stand for many; ties go to the earlier draw, or the earlier leader.
    """
    texts = [tuple(_WORD_OR_SIGN.findall(masked_numbers(candidate.text).casefold())) for candidate in candidates]
    draws: Counter[tuple[str, ...]] = Counter()
    for text, candidate in zip(texts, candidates, strict=True):
        draws[text] += candidate.draws
    leader_of: dict[tuple[str, ...], tuple[str, ...]] = {}
    for text in sorted(draws, key=lambda text: -draws[text]):
        leaders = dict.fromkeys(leader_of.values())
        near = [(_share_edited(text, leader), leader) for leader in leaders if _may_be_near(text, leader, max_edit_distance)]
        distance, nearest = min(near, key=lambda entry: entry[0], default=(math.inf, text))
        leader_of[text] = nearest if distance <= max_edit_distance else text
    return _numbered([leader_of[text] for text in texts])


def _share_edited(one: Sequence[str], other: Sequence[str]) -> float:
    return edit_distance(one, other) / max(len(one), len(other), 1)


def _may_be_near(one: Sequence[str], other: Sequence[str], most: float) -> bool:
    """Tell what can't be near without comparing word by word.

    A text that works out more has more equations, and however few words these take, it is another form.
    """
    longest = max(len(one), len(other))
    words, others = Counter(one), Counter(other)
    # The words that one text has beyond the other's must all be edited.
    return words["="] == others["="] and longest - (words & others).total() <= most * longest
