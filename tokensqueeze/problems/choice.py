"""Multiple choice: the question lists its options as `A. …`, and the gold answer is JSON with letter and options.

Its own format, for questions of one's own: columns question, options (a list, or one as JSON) and answer, which is a letter or
the whole text of one option.
"""

import json
from collections.abc import Sequence
from string import ascii_uppercase

from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import optional_text, text, texts
from tokensqueeze.problems.table_file import FileRow

_WAY_OUT = "name a file with the columns question, options and answer"


def problem(row: FileRow, problem_id: str) -> RawProblem:
    question = text(row, "question", way_out=_WAY_OUT)
    options = options_of(row, way_out=_WAY_OUT)
    written = text(row, "answer", way_out=_WAY_OUT).strip()
    # A letter is taken for one, even where an option's text is a letter too.
    if written in list(ascii_uppercase[: len(options)]):
        index = ascii_uppercase.index(written)
    elif options.count(written) == 1:
        index = options.index(written)
    else:
        raise ProblemsError(
            f'{row.where}: "answer" is {written!r}, neither a letter from A to {ascii_uppercase[len(options) - 1]} '
            "nor the text of one option; mend the row"
        )
    return choice_problem(problem_id, question, options, index, level=optional_text(row, "level"))


def options_of(row: FileRow, *, way_out: str) -> list[str]:
    options = [option.strip() for option in texts(row, "options", way_out=way_out)]
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise ProblemsError(f'{row.where}: "options" has {len(options)} entries, not 2 to {len(ascii_uppercase)}; mend the row')
    return options


def choice_problem(
    problem_id: str, question: str, options: Sequence[str], index: int, *, level: str | None = None
) -> RawProblem:
    """Return the problem whose right option is the one at `index`, counted from 0."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    gold = json.dumps({"letter": ascii_uppercase[index], "options": list(options)}, ensure_ascii=False)
    return RawProblem(problem_id, f"{question.strip()}\n\n{listed}", gold, "choice", level)
