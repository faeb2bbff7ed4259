"""The demo's problems and the traces its model was pre-trained on: a world in which reasoning depth matters.

A problem is one to four sentences of arithmetic on integers from 0 to 99. An easy sentence holds one operation, a hard one
two or three chained operations. A hard step is written in one shot ("47 + 38 - 7 = 78.") or worked out, one operation at a
time ("47 + 38 = 85, 85 - 7 = 78."). Both are always right in the data, but a four-layer model can't do chained operations in
one pass dependably, so the terse form is a gamble and the worked form is not. Everything else about a trace (intros,
restating, re-checks, recaps) is verbosity with no use. The model trained on this was *made* verbose: what squeezing saves
here predicts nothing about other models.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Operator = Literal["+", "-", "*"]
Split = Literal["train", "dev", "test"]
Policy = Literal["terse", "worked", "mixed"]

LARGEST_VALUE = 99
HARD_PROBABILITIES = (0.3, 0.7, 1.0)
"""P(a sentence is hard), drawn once per problem."""
HARD_KINDS: Mapping[tuple[str, ...], float] = {
    ("unit", "unit"): 0.15,
    ("tens", "unit"): 0.1,
    ("two_digit", "unit"): 0.25,
    ("two_digit", "two_digit"): 0.3,
    ("unit", "two_digit", "unit"): 0.2,
}
"""How often each kind of hard sentence occurs: the sizes of the numbers it adds or subtracts, one after the other."""
STEP_DELIMITER = "\n\n"

_NAMES = ("Tom", "Ann", "Sam", "Mia", "Ben", "Eva")
_ITEMS = ("apples", "coins", "books", "cards", "pens", "eggs")
_VERBS: Mapping[Operator, str] = {"+": "add", "-": "subtract", "*": "multiply by"}
_WORKED_GIVEN_HARD = 0.65
_ONE_SHOT_ERROR = {"hard": 0.12, "easy": 0.04}
_ONE_SHOT_DRILL = 0.3


@dataclass(frozen=True)
class Operation:
    operator: Operator
    amount: int

    def apply(self, value: int) -> int:
        match self.operator:
            case "+":
                return value + self.amount
            case "-":
                return value - self.amount
            case "*":
                return value * self.amount


Step = tuple[Operation, ...]
"""What one sentence does: one operation (easy), or more (hard)."""


@dataclass(frozen=True)
class DemoProblem:
    name: str
    item: str
    start: int
    steps: tuple[Step, ...]

    @property
    def question(self) -> str:
        story = " ".join(_sentence(self, step) for step in self.steps)
        return f"{self.name} has {self.start} {self.item}. {story} How many {self.item}?"

    @property
    def answer(self) -> int:
        value = self.start
        for step in self.steps:
            value = run_step(value, step)
        return value


def run_step(value: int, step: Step) -> int:
    for operation in step:
        value = operation.apply(value)
    return value


def split_of(question: str) -> Split:
    """Return the split a question belongs to; a hash of its text decides, so the splits are disjoint by construction."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 8
    return {0: "dev", 1: "test"}.get(bucket, "train")  # type: ignore[return-value]


def problems(split: Split, count: int, *, seed: int) -> list[DemoProblem]:
    """Draw `count` distinct problems of one split."""
    rng = random.Random(f"{split}/{seed}")
    found: dict[str, DemoProblem] = {}
    while len(found) < count:
        problem = draw_problem(rng, split)
        found.setdefault(problem.question, problem)
    return list(found.values())


def draw_problem(rng: random.Random, split: Split) -> DemoProblem:
    while True:
        hard_probability = rng.choice(HARD_PROBABILITIES)
        name, item, value = rng.choice(_NAMES), rng.choice(_ITEMS), rng.randint(5, 60)
        start, steps = value, []
        for _ in range(rng.randint(1, 4)):
            step = _draw_step(rng, value, hard=rng.random() < hard_probability)
            steps.append(step)
            value = run_step(value, step)
        problem = DemoProblem(name, item, start, tuple(steps))
        if split_of(problem.question) == split:
            return problem


def verbose_trace(rng: random.Random, problem: DemoProblem) -> list[str]:
    """Write the steps of one pre-training trace; a verbosity in [0, 1], drawn per trace, governs all that is superfluous."""
    verbosity = rng.random()
    name, item, steps = problem.name, problem.item, []
    if rng.random() < verbosity:
        steps.append(
            rng.choice(
                [
                    f"Okay, I need to find how many {item} {name} has.",
                    "Hmm, let me think about this.",
                    "Let me go step by step.",
                ]
            )
        )
    if rng.random() < 0.35 * verbosity:
        steps.append("Let me read the problem again. " + problem.question)
    if rng.random() < 0.4 * verbosity:
        steps.append(f"So {name} has {problem.start} {item} at the start.")
    value = problem.start
    for index, step in enumerate(problem.steps):
        result, hard = run_step(value, step), len(step) > 1
        wordy = rng.random() < 0.15 + 0.75 * verbosity
        worked = rng.random() < (_WORKED_GIVEN_HARD if hard else 0.15 + 0.35 * verbosity)
        if not worked and rng.random() < _ONE_SHOT_ERROR["hard" if hard else "easy"]:
            wrong = _wrong_result(rng, result)
            steps.append(_step_text(rng, problem, index, value, wrong, worked=False, wordy=wordy))
            doubt = rng.choice(["Wait, let me check that. ", "Hmm, that looks wrong. "])
            steps.append(f"{doubt}{worked_out(value, step)}. So {wrong} was wrong and it is {result}.")
        else:
            steps.append(_step_text(rng, problem, index, value, result, worked=worked, wordy=wordy))
            if rng.random() < 0.05 + 0.4 * verbosity:
                doubt = rng.choice(["Wait, let me check that. ", "Let me make sure this is right. "])
                steps.append(f"{doubt}{worked_out(value, step)}. Yes, {result} is correct.")
            elif rng.random() < 0.25 * verbosity:
                steps.append(f"So now {name} has {result} {item}.")
        value = result
    if rng.random() < 0.5 * verbosity:
        steps.append(f"So the answer should be {value}.")
    if rng.random() < 0.3 * verbosity:
        whole = _chain(problem.start, tuple(operation for step in problem.steps for operation in step))
        steps.append(f"Let me verify the whole thing again. {whole}. Yes, {value} is correct.")
    return steps


def gold_trace(problem: DemoProblem, policy: Policy) -> list[str]:
    """Write the bare steps: all in one shot (`terse`), all worked out (`worked`), or just the hard ones (`mixed`)."""
    steps, value = [], problem.start
    for step in problem.steps:
        one_shot = policy == "terse" or (policy == "mixed" and len(step) == 1)
        steps.append(f"{_one_shot(value, step)} = {run_step(value, step)}." if one_shot else f"{worked_out(value, step)}.")
        value = run_step(value, step)
    return steps


def completion(steps: Sequence[str], answer: int) -> str:
    """Return the text after the prompt's opening `<think>` tag."""
    return STEP_DELIMITER.join(steps) + f"\n</think>\n\nThe answer is \\boxed{{{answer}}}."


def drill(rng: random.Random) -> Iterator[str]:
    """Yield bare steps with no story, one shot or worked out: the arithmetic that the traces assume."""
    for _ in range(8):
        value = rng.randint(3, LARGEST_VALUE)
        hard = rng.random() >= 0.3
        step = _draw_step(rng, value, hard=hard)
        worked = rng.random() < (1 - _ONE_SHOT_DRILL if hard else 0.3)
        yield f"{worked_out(value, step)}." if worked else f"{_one_shot(value, step)} = {run_step(value, step)}."


def worked_out(value: int, step: Step) -> str:
    """Return the step one operation at a time; a lone two-digit operation is done tens first."""
    if len(step) > 1:
        return _chain(value, step)
    (operation,) = tuple(step)
    if operation.operator == "*":
        tens, units = value // 10 * 10, value % 10
        if not (tens and units):
            return _chain(value, step)
        by = operation.amount
        return f"{tens} * {by} = {tens * by}, {units} * {by} = {units * by}, {tens * by} + {units * by} = {value * by}"
    tens, units = operation.amount // 10 * 10, operation.amount % 10
    if not (tens and units):
        return _chain(value, step)
    return _chain(value, (Operation(operation.operator, tens), Operation(operation.operator, units)))


def _draw_step(rng: random.Random, value: int, *, hard: bool) -> Step:
    if hard:
        (kind,) = rng.choices(list(HARD_KINDS), list(HARD_KINDS.values()))
        for _ in range(50):
            step = _draw_chain(rng, value, kind)
            if step:
                return step
    while True:
        easy = _draw_operation(rng, value, "+-*", smallest=2, largest=59)
        if easy:
            return (easy,)


def _draw_chain(rng: random.Random, value: int, sizes: Sequence[str]) -> Step | None:
    """Draw one operation of each size, or nothing if the values leave their range on the way."""
    draw = {"unit": _unit, "tens": _tens, "two_digit": _two_digit}
    chain: list[Operation] = []
    for size in sizes:
        operation = draw[size](rng, value)
        if operation is None:
            return None
        chain.append(operation)
        value = operation.apply(value)
    return tuple(chain)


def _draw_operation(rng: random.Random, value: int, operators: str, *, smallest: int, largest: int) -> Operation | None:
    """Draw an operation that keeps the value between 1 and the largest, or nothing if none does."""
    possible: list[Operator] = []
    if "+" in operators and value + smallest <= LARGEST_VALUE:
        possible.append("+")
    if "-" in operators and value - smallest >= 1:
        possible.append("-")
    if "*" in operators and 2 <= value <= LARGEST_VALUE // 2:
        possible.append("*")
    if not possible:
        return None
    match rng.choice(possible):
        case "+":
            return Operation("+", rng.randint(smallest, min(largest, LARGEST_VALUE - value)))
        case "-":
            return Operation("-", rng.randint(smallest, min(largest, value - 1)))
        case "*":
            return Operation("*", rng.randint(2, min(9, LARGEST_VALUE // value)))


def _tens(rng: random.Random, value: int) -> Operation | None:
    amounts = range(10, 60, 10)
    possible = [Operation("+", amount) for amount in amounts if value + amount <= LARGEST_VALUE]
    possible += [Operation("-", amount) for amount in amounts if value - amount >= 1]
    return rng.choice(possible) if possible else None


def _unit(rng: random.Random, value: int) -> Operation | None:
    return _draw_operation(rng, value, "+-", smallest=2, largest=9)


def _two_digit(rng: random.Random, value: int) -> Operation | None:
    return _draw_operation(rng, value, "+-", smallest=11, largest=59)


def _sentence(problem: DemoProblem, step: Step) -> str:
    def phrase(operation: Operation, first: bool) -> str:
        things = f" {problem.item}" if first else ""
        match operation.operator:
            case "+":
                return f"buys {operation.amount}{things}"
            case "-":
                return f"loses {operation.amount}{things}"
            case "*":
                return (
                    f"now gets {operation.amount} times as many{things}" if first else f"gets {operation.amount} times as many"
                )

    return f"{problem.name} " + " and then ".join(phrase(operation, i == 0) for i, operation in enumerate(step)) + "."


def _one_shot(value: int, step: Step) -> str:
    return f"{value} " + " ".join(f"{operation.operator} {operation.amount}" for operation in step)


def _chain(value: int, operations: Sequence[Operation]) -> str:
    parts = []
    for operation in operations:
        result = operation.apply(value)
        parts.append(f"{value} {operation.operator} {operation.amount} = {result}")
        value = result
    return ", ".join(parts)


def _step_text(
    rng: random.Random, problem: DemoProblem, index: int, value: int, result: int, *, worked: bool, wordy: bool
) -> str:
    step = problem.steps[index]
    if not wordy:
        return f"{worked_out(value, step)}." if worked else f"{_one_shot(value, step)} = {result}."
    lead = rng.choice(["Next, ", "Then, ", "Okay, so ", "Now, "] if index else ["First, ", "Okay, so ", "To begin, "])
    need = " and ".join(f"{_VERBS[operation.operator]} {operation.amount}" for operation in step)
    plan = rng.choice([f"I need to {need}.", f"There are {value} now, so I {need}."])
    work = f"Let me see: {worked_out(value, step)}. " if worked else ""
    return f"{lead}{_sentence(problem, step)} {plan} {work}So {_one_shot(value, step)} = {result}."


def _wrong_result(rng: random.Random, result: int) -> int:
    wrong = max(0, result + rng.choice([-10, 10, -1, 1, -2, 2, -20, 20, 9, -9, 3, -3]))
    return wrong if wrong != result else result + 1
