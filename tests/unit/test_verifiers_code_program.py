"""Where the program of a completion is, what a problem's tests look like, and how printed output is compared."""

import json

import pytest

from benchmarks.code_verifier import Task, mutants_of
from tokensqueeze.code_problem import CodeTest, CodeTests
from tokensqueeze.errors import ProblemsError
from tokensqueeze.verifiers.printed_output import same_output
from tokensqueeze.verifiers.program_text import extract_program


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("```python\na = 1\n```\nor better\n```py\nb = 2\n```\n", "b = 2\n"),
        ("```python\na = 1\n```\nprints\n```\n1\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```python\ndraft\n```</think>no program", None),
        ("```python\ndraft\n```</think>```python\na = 1\n```", "a = 1\n"),
        ("```python\na = 1\n```\n```python\nb = ", "a = 1\n"),
        ("1. so:\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b\n"),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''\n"),
        ("```Python title=x\r\na = 1\r\n```", "a = 1\r\n"),
        ("use `a` and ```b``` here", None),
        ("```python\n```", "\n"),
    ],
)
def test_the_program_is_the_last_fenced_python_behind_the_thinking(text: str, program: str | None):
    found = extract_program(text, "</think>")
    assert (found.text if found else None) == program


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1\n2\n", " 1 \n2  \n\n", True),
        ("1\n2", "1 2", False),
        ("1 2", "1  2", True),
        ("a b", "a  b", False),
        ("0.5", "0.50", True),
        ("1e3 2", "1000 2.0", True),
        ("0.3333333333", "0.3333333334", False),
        ("50000000000000000", "50000000000000001", False),
        ("YES", "yes", False),
        ("1\n\n2", "1\n2", False),
        ("", "\n", True),
        ("nan", "NaN", False),
    ],
)
def test_output_is_compared_by_line_and_number(expected: str, printed: str, same: bool):
    assert same_output(expected, printed) is same


def test_tests_survive_json():
    for tests in (
        CodeTests(asserts="assert f(1) == 2", prefix="import math\n", entry_point="f"),
        CodeTests(stdin=(CodeTest(input="1\n", output="2\n"),)),
        CodeTests(functional=(CodeTest(input="[1]\n2", output="3"),), fn_name="f"),
    ):
        assert CodeTests.from_json(tests.to_json()) == tests


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{}",
        json.dumps({"asserts": "assert f()", "stdin": [{"input": "", "output": ""}]}),
        json.dumps({"functional": [{"input": "1", "output": "1"}]}),
        json.dumps({"asserts": "assert f()", "tests": 1}),
    ],
)
def test_tests_of_no_known_kind_are_refused(text: str):
    with pytest.raises(ProblemsError, match="gold answer of a programming problem"):
        CodeTests.from_json(text)


def test_a_mutant_is_the_solution_with_one_change():
    task = Task("HumanEval/x", "def half(a, b):\n", "half", "    return pow(a - 1, b)\n", "")
    changes = {(mutant.kind, mutant.after) for mutant in mutants_of(task)}
    assert changes == {
        ("operator", "return pow(a + 1, b)"),
        ("constant", "return pow(a - 2, b)"),
        ("return", "return None"),
        ("arguments", "return pow(b, a - 1)"),
    }
