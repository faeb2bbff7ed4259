"""What a rewriting broke in a trace of the demo's world: equations that are false, and values that nothing states any more.

A *false equation* is any "a op b [op c …] = d" whose two sides differ; operations run from left to right, as in the world.
It *stands* unless a later kept step starts anew from the same value and comes to the right one, as the world's re-checks do.
A *lost value* is one that a kept step computes with, or that the answer is, though neither the question nor the kept text in
front of it states it, while the original text did. Computing with a value states it from there on, so each is lost once.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from tokensqueeze.demo.world import Operation, Operator, run_step

# The result is looked at, not taken: it may be the left side of the next equation, as in "47 + 5 = 52 - 3 = 49".
_EQUATION = re.compile(r"(?<!\d)(?P<start>-?\d+)(?P<operations>(?: [-+*] \d+)+) = (?=(?P<result>-?\d+))")
_OPERATION = re.compile(r" ([-+*]) (\d+)")
_STATED = re.compile(r"\b(?:has|is|be|Yes,) (?P<stated>-?\d+)")
_TAKEN_UP = re.compile(r"\bThere are (?P<taken_up>-?\d+)")


@dataclass(frozen=True)
class Audit:
    false_equations: list[str]
    standing_equations: list[str]
    """The false ones that nothing mends."""
    lost_values: list[int]


@dataclass(frozen=True)
class Equation:
    start: int
    operations: tuple[Operation, ...]
    result: int

    @property
    def true_result(self) -> int:
        return run_step(self.start, self.operations)

    @property
    def is_true(self) -> bool:
        return self.true_result == self.result

    def __str__(self) -> str:
        operations = "".join(f" {operation.operator} {operation.amount}" for operation in self.operations)
        return f"{self.start}{operations} = {self.result}"


def audit(*, question: str, original_steps: Sequence[str], kept_steps: Sequence[str], answer: int) -> Audit:
    """Return what is wrong with the kept steps; `original_steps` are the same trace's steps before it was rewritten."""
    false = [(index, own) for index, step in enumerate(kept_steps) for own in equations(step) if not own.is_true]
    standing = [own for index, own in false if not any(_mends(step, own) for step in kept_steps[index + 1 :])]
    stated_before = set(_values(question))
    stated, lost = set(stated_before), []
    for original, kept in zip(original_steps, kept_steps, strict=True):
        stated_before.update(_values(original))
        lost += _lost(_mentions(kept), stated, stated_before)
    lost += _lost([_Mention(answer, used=True)], stated, stated_before)
    return Audit([str(equation) for _, equation in false], [str(equation) for equation in standing], lost)


def equations(text: str) -> list[Equation]:
    return [_equation(match) for match in _EQUATION.finditer(text)]


@dataclass(frozen=True)
class _Mention:
    value: int
    used: bool
    """It must be known before; otherwise this is where it is stated."""


def _mends(step: str, false: Equation) -> bool:
    mentions = list(_mentions(step))
    starts_anew = any(mention.used and mention.value == false.start for mention in mentions)
    return starts_anew and any(not mention.used and mention.value == false.true_result for mention in mentions)


def _lost(mentions: Iterable[_Mention], stated: set[int], stated_before: set[int]) -> list[int]:
    """Return what is used, stated nowhere and was stated before the rewriting; add what is mentioned to `stated`."""
    lost = []
    for mention in mentions:
        if mention.used and mention.value not in stated and mention.value in stated_before:
            lost.append(mention.value)
        stated.add(mention.value)
    return lost


def _values(text: str) -> list[int]:
    return [mention.value for mention in _mentions(text)]


def _mentions(text: str) -> Iterator[_Mention]:
    """Yield the running values that a text uses or states, in its order; the amounts of operations are none."""
    found: list[tuple[int, list[_Mention]]] = []
    for pattern, used in ((_STATED, False), (_TAKEN_UP, True)):
        found += [(match.start(), [_Mention(int(match[1]), used)]) for match in pattern.finditer(text)]
    matches = list(_EQUATION.finditer(text))
    while matches:
        own = [_equation(match) for match in matches[:3]]
        whole = _tens_and_units(own)
        start, result = (whole, own[2].result) if whole is not None else (own[0].start, own[0].result)
        found.append((matches[0].start(), [_Mention(start, used=True), _Mention(result, used=False)]))
        matches = matches[3 if whole is not None else 1 :]
    for _, mentions in sorted(found, key=lambda entry: entry[0]):
        yield from mentions


def _tens_and_units(own: Sequence[Equation]) -> int | None:
    """Return what three equations multiply, if they do it tens first: 47 for "40 * 2 = 80, 7 * 2 = 14, 80 + 14 = 94"."""
    if len(own) < 3 or any(len(equation.operations) != 1 for equation in own):
        return None
    tens, units, total = own
    (by_tens,), (by_units,), (adding,) = tens.operations, units.operations, total.operations
    multiplied = by_tens == by_units and by_tens.operator == "*" and tens.start % 10 == 0 and 0 < units.start < 10
    added = total.start == tens.result and adding == Operation("+", units.result)
    return tens.start + units.start if multiplied and added else None


def _equation(match: re.Match[str]) -> Equation:
    operations = tuple(Operation(cast(Operator, sign), int(amount)) for sign, amount in _OPERATION.findall(match["operations"]))
    return Equation(int(match["start"]), operations, int(match["result"]))
