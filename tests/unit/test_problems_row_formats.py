"""The benchmarks' own rows: programs with their tests, multiple choice, and what a user reads when a row is wrong."""

import base64
import json
import pickle
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensqueeze.code_problem import CodeTests
from tokensqueeze.config import ProblemSource
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems import livecodebench
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.source import read_problems

FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"
KEY = "problems.test"


def read(path: Path, **settings: Any) -> list[RawProblem]:
    return read_problems(ProblemSource(path=str(path), **settings), key=KEY)


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIXTURES / name).read_text().splitlines()]


def read_row(folder: Path, row: Any, **settings: Any) -> RawProblem:
    (folder / "one.jsonl").write_text(json.dumps(row) + "\n")
    (problem,) = read(folder / "one.jsonl", **settings)
    return problem


def message(folder: Path, row: Any, **settings: Any) -> str:
    with pytest.raises(ProblemsError) as caught:
        read_row(folder, row, **settings)
    start = f"{KEY}: {folder / 'one.jsonl'} line 1: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def code_tests(problem: RawProblem) -> CodeTests:
    assert problem.answer_kind == "code"
    return CodeTests.from_json(problem.gold_answer)


def packed(value: object) -> str:
    """Return a value as LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def raises(code: str) -> bool:
    try:
        exec(code, {})  # The fixtures' own code.
    except (AssertionError, NameError, TypeError):
        return True
    return False


# Which format


@pytest.mark.parametrize(
    ("name", "format", "kinds"),
    [
        ("humaneval.jsonl", "humaneval", {"code": 4}),
        ("mbpp.jsonl", "mbpp", {"code": 3}),
        ("sanitized-mbpp.json", "mbpp", {"code": 2}),
        ("livecodebench.jsonl", "livecodebench", {"code": 4}),
        ("mmlu_pro.jsonl", "mmlu_pro", {"choice": 2}),
        ("gpqa.csv", "gpqa", {"choice": 2}),
        ("math500.jsonl", "math", {"math": 4}),
        ("aime24.jsonl", "aime", {"math": 2}),
    ],
)
def test_the_columns_tell_the_format_and_its_name_says_the_same(name: str, format: str, kinds: dict[str, int]):
    problems = read(FIXTURES / name)
    assert Counter(problem.answer_kind for problem in problems) == kinds
    if name != "aime24.jsonl":  # AIME's answers lose their leading zeros only where they are known to be AIME's.
        assert read(FIXTURES / name, format=format) == problems


def test_named_columns_make_a_plain_table_of_any_row(tmp_path: Path):
    row = {**rows_of("mmlu_pro.jsonl")[0], "short": "7"}
    assert read_row(tmp_path, row, answer_column="short").answer_kind == "math"


def test_null_options_are_no_options(tmp_path: Path):
    problem = read_row(tmp_path, {"question": "1 + 1?", "options": None, "answer": "2"})
    assert (problem.answer_kind, problem.gold_answer) == ("math", "2")


def test_says_whose_row_it_is_when_another_format_was_asked_for(tmp_path: Path):
    row = rows_of("mbpp.jsonl")[0]
    assert message(tmp_path, row, format="humaneval") == (
        "a row of MBPP's, not of HumanEval's; set problems.test.format to what the file is"
    )


def test_says_which_of_a_formats_columns_are_missing(tmp_path: Path):
    row = {"task_id": "HumanEval/0", "prompt": "def f():"}
    assert message(tmp_path, row, format="humaneval") == (
        'no "entry_point", "test", as HumanEval\'s format has it; the row has "task_id", "prompt". Mend the row, or set '
        "problems.test.format to what the file is"
    )


# HumanEval


def test_humaneval_solutions_pass_their_tests_and_empty_bodies_fail_them():
    for row, problem in zip(rows_of("humaneval.jsonl"), read(FIXTURES / "humaneval.jsonl"), strict=True):
        tests = code_tests(problem)
        assert problem.problem_id == row["task_id"]
        assert (tests.prefix, tests.entry_point) == (row["prompt"], row["entry_point"])
        assert not raises(f"{tests.prefix}{row['canonical_solution']}\n{tests.asserts}")
        assert raises(f"{tests.prefix}    return None\n{tests.asserts}")


def test_humaneval_questions_show_the_head_in_a_block():
    question = read(FIXTURES / "humaneval.jsonl")[1].question
    assert "```python\ndef strlen(string: str) -> int:\n" in question
    assert question.endswith('"""\n```')


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("entry_point", "missing", '"prompt" has no "def missing(", its "entry_point"; mend the row'),
        ("test", "assert True", '"test" has no "def check(", so nothing would be tested; mend the row'),
        ("prompt", 3, '"prompt" has no "def strlen(", its "entry_point"; mend the row'),
    ],
)
def test_says_what_is_wrong_with_a_humaneval_row(tmp_path: Path, column: str, value: object, expected: str):
    assert message(tmp_path, {**rows_of("humaneval.jsonl")[1], column: value}) == expected


# MBPP


def test_mbpp_solutions_pass_their_tests_with_set_up_code_and_imports():
    rows = [*rows_of("mbpp.jsonl"), *json.loads((FIXTURES / "sanitized-mbpp.json").read_text())]
    problems = [*read(FIXTURES / "mbpp.jsonl"), *read(FIXTURES / "sanitized-mbpp.json")]
    for row, problem in zip(rows, problems, strict=True):
        assert problem.problem_id == str(row["task_id"])
        assert not raises(f"{row['code']}\n{code_tests(problem).asserts}")
        assert raises(f"{code_tests(problem).asserts}")
        assert all(line in problem.question for line in row["test_list"])
        assert (row.get("text") or row["prompt"]) in problem.question


def test_mbpp_names_the_function_that_its_solution_defines_and_its_tests_call(tmp_path: Path):
    assert [code_tests(problem).entry_point for problem in read(FIXTURES / "mbpp.jsonl")] == ["doubled", "total", "half"]
    row = rows_of("mbpp.jsonl")[0]
    helped = {"code": "def aid(x):\n    return x\ndef sum(x):\n    return aid(x)", "test_list": ["assert abs(sum(3) - 3) < 1"]}
    assert code_tests(read_row(tmp_path, row | helped)).entry_point == "sum"
    assert code_tests(read_row(tmp_path, row | {"code": "no python"})).entry_point is None


def test_mbpp_challenge_tests_are_no_part_of_it():
    assert "Node(5)" not in read(FIXTURES / "mbpp.jsonl")[1].gold_answer


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], '"test_list" is empty, so nothing would be tested; mend the row, or take it out'),
        ({"a": 1}, '"test_list" is a dict, not a list; mend the row, or name a file in MBPP\'s format'),
        ([None], 'entry 1 of "test_list" is None, no text; mend the row'),
        ("assert f()", '"test_list" is not valid JSON (Expecting value'),
    ],
)
def test_says_what_is_wrong_with_mbpps_tests(tmp_path: Path, value: object, expected: str):
    assert message(tmp_path, {**rows_of("mbpp.jsonl")[0], "test_list": value}).startswith(expected)


# LiveCodeBench


def test_livecodebench_reads_public_and_private_tests_plain_or_packed():
    early, total, gap, _ = read(FIXTURES / "livecodebench.jsonl")
    assert [(test.input, test.output) for test in code_tests(early).stdin] == [("1\n", "2\n"), ("2\n", "4\n")]
    assert [(test.input, test.output) for test in code_tests(total).stdin] == [
        ("1 2\n", "3\n"),
        ("4 5\n", "9\n"),
        ("-1 1\n", "0\n"),
    ]
    assert [(test.input, test.output) for test in code_tests(gap).functional] == [("[1, 5]\n2", "3"), ("[0]\n0", "0")]
    assert (code_tests(total).fn_name, code_tests(gap).fn_name) == (None, "largestGap")


def test_livecodebench_questions_say_where_input_comes_from_or_show_the_starter_code():
    _, total, gap, _ = read(FIXTURES / "livecodebench.jsonl")
    assert "standard input" in total.question
    assert "```python\nclass Solution:\n    def largestGap(self" in gap.question
    assert [total.level, gap.level] == ["medium", "hard"]
    assert [total.problem_id, gap.problem_id] == ["made101_b", "9001"]


@pytest.mark.parametrize(
    ("dates", "kept"),
    [
        ({"first_date": "2024-08-01", "last_date": "2025-01-31"}, ["made101_b", "9001"]),
        ({"first_date": "2024-08-02"}, ["9001", "made102_c"]),
        ({"last_date": "2024-07-31"}, ["made100_a"]),
    ],
)
def test_both_ends_of_the_dates_are_kept(dates: dict[str, str], kept: list[str]):
    assert [problem.problem_id for problem in read(FIXTURES / "livecodebench.jsonl", **dates)] == kept


def test_the_limit_counts_what_the_dates_leave():
    (problem,) = read(FIXTURES / "livecodebench.jsonl", first_date="2024-08-01", limit=1)
    assert problem.problem_id == "made101_b"


def test_livecodebench_from_parquet_with_timestamps_is_the_same(tmp_path: Path):
    table = pa.Table.from_pylist(rows_of("livecodebench.jsonl"))
    dates = table["contest_date"].cast(pa.timestamp("us"))
    table = table.set_column(table.column_names.index("contest_date"), "contest_date", dates)
    pq.write_table(table, tmp_path / "lcb.parquet")
    window = {"first_date": "2024-08-01", "last_date": "2025-01-31"}
    assert read(tmp_path / "lcb.parquet", **window) == read(FIXTURES / "livecodebench.jsonl", **window)


def test_says_that_no_problem_is_left_between_the_dates():
    path = FIXTURES / "livecodebench.jsonl"
    with pytest.raises(ProblemsError) as caught:
        read(path, first_date="2026-01-01", last_date="2026-02-01")
    assert str(caught.value) == (
        f"{KEY}: {path}: no problem is left of 4: all are before 2026-01-01 or after 2026-02-01; name another file"
    )


def test_says_that_other_formats_have_no_dates():
    with pytest.raises(ProblemsError, match="first_date and last_date are for livecodebench"):
        read(FIXTURES / "mbpp.jsonl", first_date="2024-01-01")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run by a pickle",))


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("private_test_cases", "not base64!", '"private_test_cases" is neither JSON nor base64 ('),
        ("private_test_cases", "abc", '"private_test_cases" is neither JSON nor base64 ('),
        ("private_test_cases", "aGVsbG8=", '"private_test_cases" is base64 of no zlib stream ('),
        ("private_test_cases", packed("[]")[:-8], '"private_test_cases" is base64 of no zlib stream (it ends too early)'),
        (
            "private_test_cases",
            base64.b64encode(zlib.compress(b"\xff\xff")).decode(),
            '"private_test_cases" is no pickle (',
        ),
        ("private_test_cases", packed(Evil()), '"private_test_cases" is a pickle of more than a text (it has '),
        (
            "private_test_cases",
            packed([1]),
            '"private_test_cases" is a pickle of more than a text (it has EMPTY_LIST); fetch the file anew',
        ),
        ("private_test_cases", packed("[1"), '"private_test_cases" is not valid JSON ('),
        ("private_test_cases", "[1]", '"private_test_cases" is no list of tests with input, output and testtype (0: '),
        ("private_test_cases", "{}", '"private_test_cases" is neither JSON nor base64 ('),
        (
            "public_test_cases",
            '{"a": 1}',
            '"public_test_cases" is no list of tests with input, output and testtype (all of it: ',
        ),
        (
            "public_test_cases",
            '[{"input": "1", "output": "1", "testtype": "other"}]',
            '"testtype" is other and stdin, not stdin or',
        ),
        ("contest_date", "last summer", "\"contest_date\" is 'last summer', no date such as 2024-08-01T00:00:00; mend the row"),
        ("contest_date", None, '"contest_date" is missing; give it a value, or take the row out'),
    ],
)
def test_says_what_is_wrong_with_a_livecodebench_row(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], column: str, value: object, expected: str
):
    row = {**rows_of("livecodebench.jsonl")[1], column: value}
    assert message(tmp_path, row, first_date="2024-01-01").startswith(expected)
    assert capfd.readouterr().out == ""


def test_says_that_there_is_no_test_at_all(tmp_path: Path):
    row = {**rows_of("livecodebench.jsonl")[1], "public_test_cases": "[]", "private_test_cases": packed("[]")}
    assert message(tmp_path, row) == "no test, public or private; mend the row, or take it out"


@pytest.mark.parametrize("metadata", ["{}", '{"func_name": "a b"}', None])
def test_says_that_functional_tests_name_no_function(tmp_path: Path, metadata: str | None):
    row = {**rows_of("livecodebench.jsonl")[2], "metadata": metadata}
    assert message(tmp_path, row) == '"metadata" names no "func_name", which the functional tests call; mend the row'


def test_private_tests_that_unpack_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(livecodebench, "MAX_TEST_BYTES", 10_000)
    row = {**rows_of("livecodebench.jsonl")[1], "private_test_cases": packed(10_000 * " " + "[]")}
    assert message(tmp_path, row) == '"private_test_cases" unpacks to more than 10000 bytes; take the row out'


# Multiple choice


def test_mmlu_pro_lists_up_to_ten_options_behind_the_question():
    prime, rain = read(FIXTURES / "mmlu_pro.jsonl")
    assert rain == RawProblem(
        "71",
        "What falls from clouds?\n\nA. Sand\nB. Rain\nC. Iron",
        '{"letter": "B", "options": ["Sand", "Rain", "Iron"]}',
        "choice",
    )
    assert prime.question.endswith("\nI. 15\nJ. 16")


def test_gpqa_shuffles_its_options_by_the_problems_id_alone(tmp_path: Path):
    problems = read(FIXTURES / "gpqa.csv")
    golds = [json.loads(problem.gold_answer) for problem in problems]
    assert [set(gold["options"]) for gold in golds] == [
        {"Hydrogen", "Helium", "Oxygen", 'Neon, as "Ne"'},
        {"8", "6", "9", "5"},
    ]
    assert [gold["options"]["ABCD".index(gold["letter"])] for gold in golds] == ["Hydrogen", "8"]
    assert [problem.problem_id for problem in problems] == ["recMadeUp1", "recMadeUp2"]
    assert [problem.level for problem in problems] == ["Hard undergraduate level", None]
    rows = [
        {"Question": "?", "Correct Answer": 1, **{f"Incorrect Answer {k}": -k for k in (1, 2, 3)}, "Record ID": i}
        for i in range(400)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gpqa.parquet")
    letters = Counter(json.loads(problem.gold_answer)["letter"] for problem in read(tmp_path / "gpqa.parquet"))
    # 100 ± 4 standard deviations of 8.7.
    assert all(65 <= letters[letter] <= 135 for letter in "ABCD")
    assert read(tmp_path / "gpqa.parquet", limit=7) == read(tmp_path / "gpqa.parquet")[:7]


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("B", ["Rome", "Paris"], "B"),
        ("Paris", ["Rome", "Paris"], "B"),
        (4, [3, 4.0, 5], "B"),
        ("A", ["B", "A"], "A"),
        ("b", '["a", "b"]', "B"),
    ],
)
def test_questions_of_ones_own_name_the_letter_or_the_options_text(tmp_path: Path, answer: Any, options: Any, letter: str):
    problem = read_row(tmp_path, {"question": "Which?", "options": options, "answer": answer, "level": 2})
    assert (json.loads(problem.gold_answer)["letter"], problem.answer_kind, problem.level) == (letter, "choice", "2")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"answer": "K"}, "\"answer\" is 'K', no letter from A to J; mend the row"),
        ({"answer": "AB"}, "\"answer\" is 'AB', no letter from A to J; mend the row"),
        ({"answer": "D"}, '"answer" is D, but "answer_index" is 2, where A is 0; mend the row'),
        ({"options": "4, 6, 7"}, '"options" is not valid JSON ('),
        ({"options": 4}, '"options" is a int, not a list; mend the row, or name a file in MMLU-Pro\'s format'),
        ({"options": ["only"]}, '"options" has 1 entries, not 2 to 26; mend the row'),
        ({"options": ["a", " "]}, "entry 2 of \"options\" is ' ', no text; mend the row"),
    ],
)
def test_says_what_is_wrong_with_an_mmlu_pro_row(tmp_path: Path, changed: dict[str, Any], expected: str):
    assert message(tmp_path, {**rows_of("mmlu_pro.jsonl")[0], **changed}).startswith(expected)


@pytest.mark.parametrize("answer", ["Z", "Vienna", "twice"])
def test_says_that_the_answer_is_no_option(tmp_path: Path, answer: str):
    row = {"question": "?", "options": ["Rome", "twice", "twice"], "answer": answer}
    assert message(tmp_path, row) == (
        f'"answer" is {answer!r}, neither a letter from A to C nor the text of one option; mend the row'
    )
