"""MBPP's two formats (Austin et al. 2021, arXiv 2108.07732): `text` and set-up code in the full file, `prompt` and imports in
the sanitized one. As in the paper, the question shows the tests: they alone name the function."""

import ast

from tokensqueeze.code_problem import CodeTests
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import text, text_or_blank, texts
from tokensqueeze.problems.table_file import FileRow

_WAY_OUT = "name a file in MBPP's format"


def problem(row: FileRow, problem_id: str) -> RawProblem:
    task = text(row, "text" if "text" in row.values else "prompt", way_out=_WAY_OUT).strip()
    asserts = texts(row, "test_list", way_out=_WAY_OUT)
    if not asserts:
        raise ProblemsError(f'{row.where}: "test_list" is empty, so nothing would be tested; mend the row, or take it out')
    imports = texts(row, "test_imports", way_out=_WAY_OUT) if "test_imports" in row.values else []
    setup = [*imports, text_or_blank(row, "test_setup_code", way_out=_WAY_OUT)]
    listed = "\n".join(asserts)
    solution = text_or_blank(row, "code", way_out=_WAY_OUT)
    tests = CodeTests(asserts="\n".join([*filter(None, setup), listed]) + "\n", entry_point=_asked_for(solution, listed))
    question = f"{task}\n\nThe program has to pass these tests:\n\n```python\n{listed}\n```"
    return RawProblem(problem_id, question, tests.to_json(), "code")


def _asked_for(solution: str, asserts: str) -> str | None:
    """Return the function that MBPP's own solution defines and the asserts call, or nothing where that can't be told."""
    try:
        defined = {node.name for node in ast.parse(solution).body if isinstance(node, ast.FunctionDef)}
        called = [node.func for node in ast.walk(ast.parse(asserts)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError):
        return None
    return next((name.id for name in called if isinstance(name, ast.Name) and name.id in defined), None)
