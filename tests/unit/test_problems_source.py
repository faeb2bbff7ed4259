"""Problem files in every known format, and what a user reads when one is wrong."""

import csv
import gzip
import json
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensqueeze.config import ProblemSource
from tokensqueeze.demo import world
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.hendrycks_math import boxed_answer
from tokensqueeze.problems.source import RawProblem, read_problems

FIXTURES = Path(__file__).parents[1] / "fixtures"
KEY = "problems.train"
GOOD = {"question": "1 + 1?", "answer": "2"}


def write_jsonl(folder: Path, rows: Sequence[Any], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path | str, **settings: Any) -> list[RawProblem]:
    return read_problems(ProblemSource(path=str(path), **settings), key=KEY)


def message(path: Path | str, **settings: Any) -> str:
    with pytest.raises(ProblemsError) as caught:
        read_problems(ProblemSource(path=str(path), **settings), key=KEY)
    assert str(caught.value).startswith(f"{KEY}: ")
    return str(caught.value).removeprefix(f"{KEY}: ")


def test_reads_gsm8k_as_it_is_published_and_drops_its_thousands_separators():
    problems = read(FIXTURES / "gsm8k.jsonl")
    assert [problem.gold_answer for problem in problems] == ["72", "10", "1080"]
    assert [problem.problem_id for problem in problems] == ["gsm8k-00001", "gsm8k-00002", "gsm8k-00003"]
    assert problems[0].question.startswith("Natalia sold clips to 48 of her friends")


def test_reads_math_as_it_is_published_by_its_last_box():
    problems = read(FIXTURES / "math.jsonl")
    assert [problem.gold_answer for problem in problems] == [
        "\\frac{14}{3}",
        "\\sqrt{51}",
        "11\\sqrt2",
        "x \\in [-2,7]",
    ]


def test_reads_math_with_bare_answers_beside_solutions_that_have_no_box(tmp_path: Path):
    row = {"problem": "Half of 3?", "solution": "It is 3/2.", "answer": "\\frac{3}{2}"}
    for format in ("auto", "math"):
        assert read(write_jsonl(tmp_path, [row]), format=format)[0].gold_answer == "\\frac{3}{2}"


def test_reads_math_by_a_named_solution_column(tmp_path: Path):
    path = write_jsonl(tmp_path, [{"problem": "x?", "answer": "wrong", "worked": "First \\boxed{1}, then \\fbox{2}."}])
    assert read(path, format="math", answer_column="worked")[0].gold_answer == "2"


def test_the_plain_format_takes_the_answer_word_for_word(tmp_path: Path):
    path = write_jsonl(tmp_path, [{"question": "Write a comment.", "answer": "#### 1,000"}])
    assert read(path)[0].gold_answer == "1000"
    assert read(path, format="jsonl")[0].gold_answer == "#### 1,000"


def test_named_columns_win_over_the_usual_ones(tmp_path: Path):
    path = write_jsonl(tmp_path, [{"question": "no", "answer": "no", "id": 7, "q": "yes?", "a": " yes ", "n": "first"}])
    problems = read(path, question_column="q", answer_column="a", id_column="n")
    assert problems == [RawProblem("first", "yes?", "yes")]


def test_ids_come_from_the_file_where_it_has_them_and_from_the_line_where_not(tmp_path: Path):
    assert read(write_jsonl(tmp_path, [{**GOOD, "id": 60}]))[0].problem_id == "60"
    assert read(write_jsonl(tmp_path, [{**GOOD, "problem_id": "a/1"}]))[0].problem_id == "a/1"
    (tmp_path / "gaps.jsonl").write_text(f"{json.dumps(GOOD)}\n\n\n{json.dumps(GOOD)}\n")
    assert [problem.problem_id for problem in read(tmp_path / "gaps.jsonl")] == ["gaps-00001", "gaps-00004"]


@pytest.mark.parametrize(
    ("written", "text"), [(27, "27"), (27.0, "27"), (-0.5, "-0.5"), (1e300, "1e+300"), (10**30, "1" + 30 * "0")]
)
def test_numbers_become_the_text_a_model_would_write(tmp_path: Path, written: float, text: str):
    assert read(write_jsonl(tmp_path, [{"question": "?", "answer": written}]))[0].gold_answer == text


def test_the_limit_keeps_the_first_and_looks_no_further(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\nnot json\n")
    assert len(read(path, limit=2)) == 2
    assert "line 3" in message(path)


def test_a_line_separator_inside_a_question_ends_no_line(tmp_path: Path):
    question = "one\u2028two\x85three"
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": question, "answer": 1}, ensure_ascii=False))
    assert read(path)[0].question == question


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read(path)[0].gold_answer == "2"


def test_parquet_and_jsonl_give_the_same_problems(tmp_path: Path):
    rows = [{"question": f"{i}?", "answer": i / 2} for i in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    assert read(tmp_path / "mine.parquet") == read(write_jsonl(tmp_path, rows))
    assert len(read(tmp_path / "mine.parquet", limit=2999)) == 2999


def test_parquet_decimals_become_text_without_trailing_zeros(tmp_path: Path):
    pq.write_table(pa.table({"question": ["?"], "answer": [Decimal("12.50")]}), tmp_path / "mine.parquet")
    assert read(tmp_path / "mine.parquet")[0].gold_answer == "12.5"


def test_csv_and_json_arrays_and_what_is_gzipped_give_the_same_problems(tmp_path: Path):
    rows = [{"question": 'Which,\nof \u2028 "two"?', "answer": "2"}, {"question": "é", "answer": "x=1,5"}]
    expected = [(row["question"], row["answer"]) for row in rows]
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "mine.json").write_text(json.dumps(rows, indent=2))
    lines = write_jsonl(tmp_path, rows, name="lines.json")
    packed = tmp_path / "mine.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "mine.csv").read_bytes()))
    for path in (tmp_path / "mine.csv", tmp_path / "mine.json", lines, packed):
        assert [(problem.question, problem.gold_answer) for problem in read(path)] == expected
    assert read(packed)[1].problem_id == "mine-00002"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("mine.csv", "question,answer\n1,2\n3\n", " row 2: not as many fields as the header has; mend the row"),
        ("mine.csv", "question,answer\n1,2,3\n", " row 1: not as many fields as the header has; mend the row"),
        ("mine.csv", 'question,answer\n"1"2,2\n', ": not valid CSV ('"),
        ("mine.csv", "question,answer\n", ": no problem in it; give it at least one row with a question and an answer"),
        ("mine.csv", "", ": no problem in it"),
        ("mine.csv", b"question,answer\n\xff,1\n", ": not UTF-8 text (invalid start byte); save the file as UTF-8"),
        ("mine.json", '[{"question": "?"', ": not valid JSON ("),
        ("mine.json", "[1]", " row 1: a number, not an object; put one object on each line"),
        ("mine.json", "[]", ": no problem in it"),
        ("mine.json", '{"question": "?",\n"answer": 1}', " line 1: not valid JSON ("),
    ],
)
def test_says_what_is_wrong_with_a_csv_or_json_file(tmp_path: Path, name: str, content: str | bytes, expected: str):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message(tmp_path / name).startswith(f"{tmp_path / name}{expected}")


def test_problems_without_an_answer_are_left_out_where_that_is_asked_for(tmp_path: Path):
    rows = [{"problem": "?", "answer": None}, {"problem": "?", "answer": " "}, {"problem": "1+1?", "answer": 2}]
    path = write_jsonl(tmp_path, rows)
    assert read(path, unanswered="drop") == [RawProblem("mine-00003", "1+1?", "2")]
    (tmp_path / "none.jsonl").write_text(json.dumps(rows[0]))
    assert message(tmp_path / "none.jsonl", unanswered="drop") == (
        f"{tmp_path / 'none.jsonl'}: no problem is left of 1: all are without an answer; name another file"
    )


def test_the_first_answer_there_is_tells_the_shape(tmp_path: Path):
    rows = [{"question": "?", "answer": None}, {"question": "?", "answer": "So #### 7"}]
    assert read(write_jsonl(tmp_path, rows), unanswered="drop")[0].gold_answer == "7"


def test_levels_come_from_the_columns_level_and_difficulty(tmp_path: Path):
    rows = [{**GOOD, "difficulty": 5.0}, {**GOOD, "difficulty": "hard"}, {**GOOD, "difficulty": None}, {**GOOD}]
    assert [problem.level for problem in read(write_jsonl(tmp_path, rows))] == ["5", "hard", None, None]
    assert read(write_jsonl(tmp_path, [{**GOOD, "level": [1]}]))[0].level is None


@pytest.mark.parametrize(
    ("written", "answer"),
    [("025", "25"), (0, "0"), (336.0, "336"), ("336^\\circ", "336"), ("$\\boxed{073}$", "73"), ("$\\boxed{073}^\\circ$", "73")],
)
def test_aime_answers_are_whole_numbers(tmp_path: Path, written: object, answer: str):
    assert read(write_jsonl(tmp_path, [{"problem": "?", "answer": written}]), format="aime")[0].gold_answer == answer


@pytest.mark.parametrize("written", ["1000", "-1", "2.5", "7 or 8", "\\frac12", "x"])
def test_says_that_an_answer_is_no_aime_answer(tmp_path: Path, written: str):
    path = write_jsonl(tmp_path, [{"problem": "?", "answer": written}])
    assert message(path, format="aime").startswith(f'{path} line 1: "answer" is {written!r}, no whole number from 0 to 999')


def test_dates_may_be_written_either_way_and_stay_json():
    for written in ("2024-08-01", date(2024, 8, 1)):
        source = ProblemSource.model_validate({"path": "x", "first_date": written})
        assert json.loads(json.dumps(source.model_dump()))["first_date"] == "2024-08-01"


def test_the_demo_is_drawn_from_its_world_by_split_and_seed():
    problems = read("demo:test", limit=20, seed=3)
    drawn = world.problems("test", 20, seed=3)
    assert [(p.question, p.gold_answer) for p in problems] == [(d.question, str(d.answer)) for d in drawn]
    assert [problem.problem_id for problem in problems][17] == "demo-test-00017"
    assert read("demo:dev")


def test_says_which_splits_the_demo_has():
    assert message("demo:validation") == (
        "demo:validation: the demo has no split 'validation'; name one of demo:train, demo:dev, demo:test"
    )


def test_says_that_a_file_is_missing_and_what_would_do():
    assert message("nowhere.jsonl") == (
        "nowhere.jsonl: no such file; name a JSONL, Parquet, CSV or JSON file, hf:OWNER/NAME or demo:test"
    )


def test_says_that_a_directory_is_no_file(tmp_path: Path):
    assert message(tmp_path) == f"{tmp_path}: a directory; name one file in it"


def test_says_that_a_suffix_tells_nothing_and_which_setting_does(tmp_path: Path):
    path = write_jsonl(tmp_path, [GOOD], name="mine.txt")
    assert message(path) == (
        f"{path}: its name says neither JSONL nor Parquet, CSV or JSON; rename it, or set problems.train.format"
    )
    assert read(path, format="jsonl")[0].gold_answer == "2"


def test_says_that_a_file_is_empty(tmp_path: Path):
    path = write_jsonl(tmp_path, [])
    assert message(path) == (f"{path}: no problem in it; give it at least one row with a question and an answer")
    schema = pa.schema([("question", pa.string()), ("answer", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "mine.parquet")
    assert "no problem in it" in message(tmp_path / "mine.parquet")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"question": "?", ', "line 2: not valid JSON (Expecting property name"),
        (b"[1, 2]", "line 2: an array, not an object; put one object on each line"),
        (b'"text"', "line 2: a string, not an object"),
        (b"null", "line 2: null, not an object"),
        (b"3", "line 2: a number, not an object"),
        (b'{"question": "\xff"}', "line 2: not UTF-8 text (invalid start byte); save the file as UTF-8"),
        (b'{"question": "?", "answer": ' + 5000 * b"1" + b"}", "line 2: not valid JSON (Exceeds the limit"),
        (100_000 * b"[", "line 2: not valid JSON (maximum recursion depth"),
        (b'{"question": "a\\ud800b", "answer": "1"}', 'line 2: "question" is no valid Unicode (a lone surrogate)'),
    ],
)
def test_says_which_line_is_malformed(tmp_path: Path, line: bytes, expected: str):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    assert message(path).startswith(f"{path} {expected}")


def test_says_which_columns_there_are_when_the_answer_is_not_found(tmp_path: Path):
    path = write_jsonl(tmp_path, [{"question": "?", "id": 1}])
    assert message(path) == (
        f'{path} line 1: no "answer" or "gold_answer" or "solution"; the row has "question", "id". Mend the '
        "row, or name another column with problems.train.answer_column"
    )


def test_says_which_columns_there_are_when_a_named_one_is_not_found(tmp_path: Path):
    path = write_jsonl(tmp_path, [GOOD])
    assert message(path, question_column="text") == (
        f'{path} line 1: no "text"; the row has "question", "answer". Mend the row, or name another column with '
        "problems.train.question_column"
    )
    assert "id_column" in message(path, id_column="nr")


def test_says_that_a_later_row_lacks_what_the_first_one_has(tmp_path: Path):
    path = write_jsonl(tmp_path, [GOOD, {"question": "2 + 2?", "gold_answer": "4"}])
    assert message(path) == (
        f'{path} line 2: no "answer"; the row has "question", "gold_answer". Mend the row, or name another '
        "column with problems.train.answer_column"
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, '"answer" is missing; give it a value, or take the row out, or set problems.train.unanswered = "drop"'),
        ("  ", '"answer" is empty; give it a value, or take the row out, or set problems.train.unanswered = "drop"'),
        (float("nan"), '"answer" is nan; give it a value, or take the row out'),
        ([1], '"answer" is a list, neither text nor a number; name another column with problems.train.answer_column'),
        (True, '"answer" is a bool, neither text nor a number; name another column with problems.train.answer_column'),
    ],
)
def test_says_which_row_has_no_usable_answer(tmp_path: Path, answer: object, expected: str):
    path = write_jsonl(tmp_path, [GOOD, {"question": "?", "answer": answer}])
    assert message(path) == f"{path} line 2: {expected}"


def test_names_both_rows_of_a_duplicate_id(tmp_path: Path):
    path = write_jsonl(tmp_path, [{**GOOD, "id": 1}, {**GOOD, "id": 2}, {**GOOD, "id": "1"}])
    assert message(path) == (
        f"{path} line 3: the id '1' is that of line 1 too; make the ids distinct, or name another column "
        "with problems.train.id_column"
    )


def test_says_which_row_has_no_gsm8k_answer(tmp_path: Path):
    path = write_jsonl(tmp_path, [{"question": "?", "answer": "So #### 1"}, {"question": "?", "answer": "So 1"}])
    assert message(path) == (
        f'{path} line 2: no answer behind "####" in "answer", as GSM8K\'s format has it; mend the row, or '
        "set problems.train.format to what the file is"
    )


def test_says_which_row_has_no_box(tmp_path: Path):
    rows = [{"problem": "?", "solution": "\\boxed{1}"}, {"problem": "?", "solution": "It is \\boxed{2"}]
    path = write_jsonl(tmp_path, rows)
    assert message(path) == (
        f'{path} line 2: no \\boxed{{}} in "solution", as MATH\'s format has it; mend the row, or '
        "name another column with problems.train.answer_column"
    )


def test_says_that_a_file_is_no_parquet(tmp_path: Path):
    path = write_jsonl(tmp_path, [GOOD], name="mine.parquet")
    assert message(path).startswith(f"{path}: not a readable Parquet file (")
    assert message(path).endswith("write it anew, or set problems.train.format if it is JSONL")
    assert read(path, format="jsonl")[0].gold_answer == "2"


def test_says_which_parquet_row_is_wrong(tmp_path: Path):
    pq.write_table(pa.table({"question": ["?", "?"], "answer": ["1", None]}), tmp_path / "mine.parquet")
    assert f'{tmp_path / "mine.parquet"} row 2: "answer" is missing' in message(tmp_path / "mine.parquet")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("\\boxed{\\frac{1}{\\sqrt{2}}}$.", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{1} and \\boxed{ 2 }", "2"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("$\\fbox{A}$", "A"),
        ("the sum is $\\boxed 9$.", "9"),
        ("\\boxed{}", None),
        ("\\boxed{1", None),
        ("no box", None),
    ],
)
def test_reads_the_boxes_that_math_has(solution: str, answer: str | None):
    assert boxed_answer(solution) == answer
