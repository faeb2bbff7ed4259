"""GPQA's format (Rein et al. 2023, arXiv 2311.12022): one right answer and three wrong ones, each in a column of its own.

The file names the right one first, so the options are shuffled, by a seed that follows from the problem's id alone: every run
and every model sees the same order.
"""

import random

from tokensqueeze.fingerprint import seed_of
from tokensqueeze.problems.choice import choice_problem
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import optional_text, text
from tokensqueeze.problems.table_file import FileRow

_WAY_OUT = "name a file in GPQA's format"
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def problem(row: FileRow, problem_id: str) -> RawProblem:
    question = text(row, "Question", way_out=_WAY_OUT)
    right = text(row, "Correct Answer", way_out=_WAY_OUT).strip()
    wrong = [text(row, column, way_out=_WAY_OUT).strip() for column in _WRONG]
    options = [right, *wrong]
    random.Random(seed_of("gpqa", problem_id)).shuffle(options)
    # `Hard undergraduate level (could be a question on a hard undergraduate exam …)`
    level = (optional_text(row, "Writer's Difficulty Estimate") or "").partition(" (")[0]
    return choice_problem(problem_id, question, options, options.index(right), level=level or None)
