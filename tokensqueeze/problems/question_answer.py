"""Rows of a question and an answer: plain tables, GSM8K's (`####`), MATH's (`\\boxed{}`), AIME's (a whole number).

The first row decides which columns hold question and answer, and, where the format is `auto`, which of these it is. Later
rows must be like it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tokensqueeze.config import ProblemSource
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems import aime, gsm8k, hendrycks_math
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import as_text, is_missing, optional_text, text
from tokensqueeze.problems.table_file import FileRow

QUESTION_COLUMNS = ("question", "problem", "prompt")
ANSWER_COLUMNS = ("answer", "gold_answer", "solution")
LEVEL_COLUMNS = ("level", "difficulty")

Shape = Literal["plain", "gsm8k", "math", "aime"]
WayOut = Callable[[str], str]
"""From the name of a setting, `question_column`, to what a message says can be done with it."""


@dataclass(frozen=True)
class QuestionAnswer:
    """How the rows of one file are read."""

    question: str
    answer: str
    level: str | None
    shape: Shape
    way_out: WayOut

    def problem(self, row: FileRow, problem_id: str) -> RawProblem:
        question = text(row, self.question, way_out=self.way_out("question_column"))
        level = optional_text(row, self.level) if self.level else None
        return RawProblem(problem_id, question, self._gold_answer(row), level=_level(level))

    def is_unanswered(self, row: FileRow) -> bool:
        return self.answer in row.values and is_missing(row, self.answer)

    def _gold_answer(self, row: FileRow) -> str:
        if self.is_unanswered(row):
            given = "missing" if row.values[self.answer] is None else "empty"
            raise ProblemsError(
                f'{row.where}: "{self.answer}" is {given}; give it a value, or take the row out{self.way_out("unanswered")}'
            )
        written = text(row, self.answer, way_out=self.way_out("answer_column")).strip()
        match self.shape:
            case "plain":
                return written
            case "gsm8k":
                return self._behind_marker(row, written)
            case "math":
                return self._boxed(row, written)
            case "aime":
                return self._whole_number(row, self._boxed(row, written))

    def _behind_marker(self, row: FileRow, written: str) -> str:
        answer = gsm8k.final_answer(written)
        if answer is None:
            raise ProblemsError(
                f'{row.where}: no answer behind "####" in "{self.answer}", as GSM8K\'s format has it; mend the '
                f"row, or {self.way_out('format')}"
            )
        return answer

    def _boxed(self, row: FileRow, written: str) -> str:
        boxed = hendrycks_math.boxed_answer(written)
        if boxed is None and self.answer == "solution":
            raise ProblemsError(
                f'{row.where}: no \\boxed{{}} in "solution", as MATH\'s format has it; mend the row, or '
                f"{self.way_out('answer_column')}"
            )
        if boxed is None and gsm8k.MARKER in written:
            raise ProblemsError(
                f'{row.where}: "{self.answer}" has GSM8K\'s "####" and no \\boxed{{}}; read it as gsm8k, or mend the row'
            )
        return boxed or written

    def _whole_number(self, row: FileRow, written: str) -> str:
        answer = aime.whole_number(written)
        if answer is None:
            raise ProblemsError(
                f'{row.where}: "{self.answer}" is {written!r}, no whole number from 0 to 999, as AIME\'s answers are; mend '
                f"the row, or {self.way_out('format')}"
            )
        return answer


def question_answer_of(source: ProblemSource, row: FileRow, *, way_out: WayOut) -> QuestionAnswer:
    """Return how the file that begins with this row is read. Raises `ProblemsError` where a column is not there."""
    question = _pick(source.question_column, QUESTION_COLUMNS, row, way_out=way_out("question_column"))
    answer = _pick(source.answer_column, ANSWER_COLUMNS, row, way_out=way_out("answer_column"))
    level = next((name for name in LEVEL_COLUMNS if name in row.values and name not in (question, answer)), None)
    shape = _shape(source, question, answer, as_text(row.values[answer]) or "")
    return QuestionAnswer(question, answer, level, shape, way_out)


def _pick(named: str | None, defaults: Sequence[str], row: FileRow, *, way_out: str) -> str:
    wanted = [named] if named else defaults
    found = next((name for name in wanted if name in row.values), None)
    if found is None:
        listed = " or ".join(f'"{name}"' for name in wanted)
        raise ProblemsError(f"{row.where}: no {listed}; the row has {row.columns_text}. Mend the row, or {way_out}")
    return found


def _shape(source: ProblemSource, question: str, answer: str, answer_text: str) -> Shape:
    match source.format:
        case "gsm8k" | "math" | "aime":
            return source.format
        case "auto" if gsm8k.MARKER in answer_text:
            return "gsm8k"
        case "auto":
            whole_solution = (question, answer) == ("problem", "solution")
            return "math" if whole_solution or hendrycks_math.boxed_answer(answer_text) else "plain"
        case _:
            return "plain"


def _level(written: str | None) -> str | None:
    """Return the bare level of MATH's `Level 5`; its `Level ?` is none."""
    level = (written or "").removeprefix("Level ").strip()
    return level if level not in ("", "?") else None
