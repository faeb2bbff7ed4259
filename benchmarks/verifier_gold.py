"""Does the math verifier find every gold answer equal to itself and to other spellings of it, and to nothing near it?

Every gold answer of the benchmarks given is judged against itself, against perturbed copies (a digit, the sign, a fraction
turned over, an element left out, a letter) and against rewritten copies (`\\dfrac`, `\\left(`, decimals, thousands
separators, units). Prints the counts, each failure, and JSON as the last line.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokensqueeze.problems.gsm8k import final_answer
from tokensqueeze.verifiers.math_answer import MathVerifier
from tokensqueeze.verifiers.verdict import Answered
from tokensqueeze.verifiers.written_math import plain_number

BENCHMARKS = ("gsm8k", "math500", "aime24", "aime25", "amc23")
_FRACTION = re.compile(r"\\frac\{([^{}]+)\}\{([^{}]+)\}")
_LAST_ELEMENT = re.compile(r"\s*,[^,()\[\]{}]*(?=[)\]]?$|\\\}$)")
_LETTER = re.compile(r"(?<![A-Za-z\\])[a-zA-Z](?![A-Za-z])")
_WORD = re.compile(r"\\text\{\(?([A-Za-z]+)\)?\}")
_OTHER_SCRIPT = str.maketrans("-0123456789", "−０１２３４５６７８９")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_SIGNED = re.compile(r"-?(?:[0-9]|\\frac|\\sqrt)[^,=:<>]*")


@dataclass(frozen=True)
class Copy:
    kind: str
    gold_answer: str
    text: str
    same: bool


def gold_answers(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = [str(row["answer"]) for row in rows]
    return [final_answer(answer) or answer for answer in answers]


def perturbed(gold: str, order: random.Random) -> Iterator[tuple[str, str]]:
    """Yield copies that no longer mean the same, each with what was done."""
    if places := [place for place, letter in enumerate(gold) if letter.isdigit()]:
        place = order.choice(places)
        other = order.choice([digit for digit in "123456789" if digit != gold[place]])
        yield "a digit changed", gold[:place] + other + gold[place + 1 :]
    number = plain_number(gold)
    if number != 0 and (number is not None or (_SIGNED.fullmatch(gold) and "text" not in gold)):
        yield "the sign flipped", gold[1:] if gold.startswith("-") and number is not None else f"-({gold})"
    if _INTEGER.fullmatch(gold):
        yield "one more", str(int(gold) + 1)
        yield "a nought behind it", gold + "0" if int(gold) else "10"
    if (fraction := _FRACTION.search(gold)) and fraction[1] != fraction[2]:
        turned = f"\\frac{{{fraction[2]}}}{{{fraction[1]}}}"
        yield "a fraction turned over", gold[: fraction.start()] + turned + gold[fraction.end() :]
    if (element := _LAST_ELEMENT.search(gold)) and number is None and "\\!" not in gold:
        yield "an element left out", gold[: element.start()] + gold[element.end() :]
    if word := _WORD.search(gold):
        yield "a letter changed", gold.replace(word[1], word[1][:-1] + ("x" if word[1][-1] != "x" else "y"))
    elif (letter := _LETTER.search(gold)) and "=" not in gold and "\\in" not in gold and "_" not in gold:
        # In x = 5 and x ∈ A the letter is only the name of what was asked for.
        yield "a letter changed", gold[: letter.start()] + ("q" if letter[0] != "q" else "r") + gold[letter.end() :]


def rewritten(gold: str) -> Iterator[tuple[str, str]]:
    """Yield copies that mean the same, each with what was done."""
    yield "dollars and a full stop", f"${gold}$."
    yield "spaces", re.sub(r"(?<![\\!])([,+=/])(?!\\!|[0-9]{3})", r" \1 ", gold)
    if "\\frac" in gold:
        yield "dfrac", gold.replace("\\frac", "\\dfrac")
    if "\\left" in gold:
        yield "no left and right", re.sub(r"\\(?:left|right)(?=[()\[\]])", "", gold)
    elif gold.startswith("(") and gold.endswith(")") and gold.count("(") == 1:
        yield "left and right", f"\\left{gold[:-1]}\\right)"
    number = plain_number(gold)
    if number is None:
        return
    yield "a unit", f"{gold}\\text{{ units}}"
    yield "an equation", f"x = {gold}"
    yield "characters of another script", gold.translate(_OTHER_SCRIPT)
    if _INTEGER.fullmatch(gold):
        yield "a decimal", gold + ".00"
        if abs(number) >= 1000:
            yield "thousands separators", f"{int(gold):,}"
            yield "thousands separators of LaTeX", f"{int(gold):,}".replace(",", "{,}")
    elif 10**4 % number.denominator == 0:
        yield "a decimal", str(float(number))
    yield "a fraction", f"\\frac{{{2 * number.numerator}}}{{{2 * number.denominator}}}"


def copies(gold: str, order: random.Random) -> list[Copy]:
    different = [Copy(kind, gold, text, False) for kind, text in perturbed(gold, order)]
    return [Copy("itself", gold, gold, True), *different, *(Copy(kind, gold, text, True) for kind, text in rewritten(gold))]


def judge(names: dict[str, Path], processes: int, seed: int) -> dict[str, object]:
    figures: dict[str, object] = {}
    with MathVerifier(timeout_seconds=10, think_end="</think>", processes=processes) as verifier:
        for name, path in names.items():
            golds, order = gold_answers(path), random.Random(seed)
            items = [copy for gold in golds for copy in copies(gold, order)]
            judgements = verifier.judge([Answered(f"\\boxed{{{copy.text}}}", copy.gold_answer, "stop") for copy in items])
            asked, wrong = Counter[str](), Counter[str]()
            for copy, judgement in zip(items, judgements, strict=True):
                group = "itself" if copy.kind == "itself" else "rewritten" if copy.same else "perturbed"
                asked[group] += 1
                if (judgement.verdict == "correct") != copy.same:
                    wrong[group] += 1
                    found = f"{judgement.verdict} {judgement.cause or ''}".strip()
                    print(f"{name}: {group}, {copy.kind}: {copy.gold_answer!r} against {copy.text!r}: {found}")
            figures[name] = {
                "problems": len(golds),
                **{group: {"asked": asked[group], "wrong": wrong[group]} for group in asked},
            }
            print(name, json.dumps(figures[name]), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in BENCHMARKS:
        parser.add_argument(f"--{name}", type=Path, help="JSONL of the benchmark's own format")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names = {name: path for name in BENCHMARKS if (path := getattr(arguments, name)) is not None}
    if not names:
        parser.error("name at least one file, for instance --math500 PATH")
    print(json.dumps(judge(names, arguments.processes, arguments.seed)))


if __name__ == "__main__":
    main()
