"""HumanEval's format (Chen et al. 2021, arXiv 2107.03374): a function's head to complete, and a `check` of the function."""

from tokensqueeze.code_problem import CodeTests
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import text
from tokensqueeze.problems.table_file import FileRow

_WAY_OUT = "name a file in HumanEval's format"


def problem(row: FileRow, problem_id: str) -> RawProblem:
    prompt = text(row, "prompt", way_out=_WAY_OUT)
    function = text(row, "entry_point", way_out=_WAY_OUT).strip()
    check = text(row, "test", way_out=_WAY_OUT)
    if f"def {function}(" not in prompt:
        raise ProblemsError(f'{row.where}: "prompt" has no "def {function}(", its "entry_point"; mend the row')
    if "def check(" not in check:
        raise ProblemsError(f'{row.where}: "test" has no "def check(", so nothing would be tested; mend the row')
    tests = CodeTests(asserts=f"{check}\n\ncheck({function})\n", prefix=prompt, entry_point=function)
    question = f"Write the whole function that this is the beginning of:\n\n```python\n{prompt.strip()}\n```"
    return RawProblem(problem_id, question, tests.to_json(), "code")
