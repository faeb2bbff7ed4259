"""MMLU-Pro's format (Wang et al. 2024, arXiv 2406.01574): up to ten options; the answer as a letter and as an index."""

from string import ascii_uppercase

from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.choice import choice_problem, options_of
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import text
from tokensqueeze.problems.table_file import FileRow

_WAY_OUT = "name a file in MMLU-Pro's format"


def problem(row: FileRow, problem_id: str) -> RawProblem:
    question = text(row, "question", way_out=_WAY_OUT)
    options = options_of(row, way_out=_WAY_OUT)
    letter = text(row, "answer", way_out=_WAY_OUT).strip()
    index = text(row, "answer_index", way_out=_WAY_OUT)
    if letter not in list(ascii_uppercase[: len(options)]):
        raise ProblemsError(
            f'{row.where}: "answer" is {letter!r}, no letter from A to {ascii_uppercase[len(options) - 1]}; mend the row'
        )
    if index != str(ascii_uppercase.index(letter)):
        raise ProblemsError(f'{row.where}: "answer" is {letter}, but "answer_index" is {index}, where A is 0; mend the row')
    return choice_problem(problem_id, question, options, int(index))
