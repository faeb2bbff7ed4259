"""Read the problems that a `problems.*` setting names: a JSONL or Parquet file in a known shape, or the demo's own.

The first row decides which columns hold question, answer and id, and, where `format` is `auto`, whether the file is
GSM8K's (`####` in the answer), MATH's (the answer is in a `\\boxed{}`) or a plain table. Later rows must be like it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from tokensqueeze.config import ProblemSource
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems import demo, gsm8k, hendrycks_math
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.table_file import FileRow, open_rows

QUESTION_COLUMNS = ("question", "problem", "prompt")
ANSWER_COLUMNS = ("answer", "gold_answer", "solution")
ID_COLUMNS = ("id", "problem_id")

Shape = Literal["plain", "gsm8k", "math"]


def read_problems(source: ProblemSource, *, key: str) -> list[RawProblem]:
    """Return a source's problems in file order, the first `limit` of them; rows behind the limit are not looked at.

    A problem without an id of its own is named after its file and its line (JSONL) or row (Parquet), counted from 1.
    `key` is the setting that holds the source, such as `problems.train`. Raises `ProblemsError` that names file, row
    and the way out, at the first row that is wrong.
    """
    if source.path.startswith(demo.PREFIX):
        return demo.demo_problems(source.path, limit=source.limit, seed=source.seed, key=key)
    path = Path(source.path)
    problems: list[RawProblem] = []
    place_of: dict[str, str] = {}
    columns: _Columns | None = None
    for row in open_rows(path, format=source.format, key=key):
        columns = columns or _columns_of(source, row, key=key)
        problem = _problem(row, columns, path=path, key=key)
        if problem.problem_id in place_of:
            raise ProblemsError(
                f"{row.where}: the id {problem.problem_id!r} is that of {place_of[problem.problem_id]} too; make the "
                f"ids distinct, or name another column with {key}.id_column"
            )
        place_of[problem.problem_id] = row.place
        problems.append(problem)
        if len(problems) == source.limit:
            break
    if not problems:
        raise ProblemsError(f"{key}: {path}: no problem in it; give it at least one row with a question and an answer")
    return problems


@dataclass(frozen=True)
class _Columns:
    question: str
    answer: str
    problem_id: str | None
    shape: Shape


def _columns_of(source: ProblemSource, row: FileRow, *, key: str) -> _Columns:
    question = _pick(source.question_column, QUESTION_COLUMNS, row, setting=f"{key}.question_column")
    answer = _pick(source.answer_column, ANSWER_COLUMNS, row, setting=f"{key}.answer_column")
    problem_id = source.id_column or next((name for name in ID_COLUMNS if name in row.values), None)
    return _Columns(question, answer, problem_id, _shape(source, question, answer, str(row.values[answer])))


def _pick(named: str | None, defaults: Sequence[str], row: FileRow, *, setting: str) -> str:
    wanted = [named] if named else defaults
    found = next((name for name in wanted if name in row.values), None)
    if found is None:
        listed = " or ".join(f'"{name}"' for name in wanted)
        raise ProblemsError(f"{row.where}: no {listed}; the row has {row.columns_text}. Name the column with {setting}")
    return found


def _shape(source: ProblemSource, question: str, answer: str, answer_text: str) -> Shape:
    match source.format:
        case "gsm8k" | "math":
            return source.format
        case "jsonl" | "parquet":
            return "plain"
        case "auto" if gsm8k.MARKER in answer_text:
            return "gsm8k"
        case "auto":
            whole_solution = (question, answer) == ("problem", "solution")
            return "math" if whole_solution or hendrycks_math.boxed_answer(answer_text) else "plain"


def _problem(row: FileRow, columns: _Columns, *, path: Path, key: str) -> RawProblem:
    question = _text(row, columns.question, setting=f"{key}.question_column")
    written = _text(row, columns.answer, setting=f"{key}.answer_column").strip()
    if columns.problem_id is None:
        problem_id = f"{path.stem}-{row.number:05d}"
    else:
        problem_id = _text(row, columns.problem_id, setting=f"{key}.id_column")
    return RawProblem(problem_id, question, _gold_answer(row, columns, written, key=key))


def _gold_answer(row: FileRow, columns: _Columns, written: str, *, key: str) -> str:
    match columns.shape:
        case "plain":
            return written
        case "gsm8k":
            answer = gsm8k.final_answer(written)
            if answer is None:
                raise ProblemsError(
                    f'{row.where}: no answer behind "####" in "{columns.answer}", as GSM8K\'s format has it; mend the '
                    f'row, or set {key}.format = "jsonl" or "parquet" if the column is the bare answer'
                )
            return answer
        case "math":
            boxed = hendrycks_math.boxed_answer(written)
            if boxed is None and columns.answer == "solution":
                raise ProblemsError(
                    f'{row.where}: no \\boxed{{}} in "solution", as MATH\'s format has it; mend the row, or name a '
                    f"column with the bare answer with {key}.answer_column"
                )
            return boxed or written


def _text(row: FileRow, column: str, *, setting: str) -> str:
    """Return a value as text: 27, 27.0 and "27" are the same answer."""
    if column not in row.values:
        raise ProblemsError(
            f'{row.where}: no "{column}"; the row has {row.columns_text}. Mend the row, or name another column with {setting}'
        )
    value = row.values[column]
    match value:
        case bool():
            pass
        case str() if value.strip():
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise ProblemsError(f'{row.where}: "{column}" is no valid Unicode (a lone surrogate); mend the row')
            return value
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case Decimal() if value.is_finite():
            return f"{value.normalize():f}"
        case None | str() | float():
            given = "missing" if value is None else "empty" if isinstance(value, str) else repr(value)
            raise ProblemsError(f'{row.where}: "{column}" is {given}; give it a value, or take the row out')
    raise ProblemsError(
        f'{row.where}: "{column}" is a {type(value).__name__}, neither text nor a number; name another column with {setting}'
    )
