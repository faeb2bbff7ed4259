"""Benchmarks by name: their own files, their defaults, and what a user reads when it is another's file."""

import gzip
import json
import shutil
from datetime import date
from pathlib import Path

import pytest

from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems import hub
from tokensqueeze.problems.benchmarks import BENCHMARKS, benchmark, read_benchmark
from tokensqueeze.problems.raw_problem import RawProblem

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILES = {
    "gsm8k": FIXTURES / "gsm8k.jsonl",
    "math": FIXTURES / "math.jsonl",
    "math500": FIXTURES / "benchmarks" / "math500.jsonl",
    "aime24": FIXTURES / "benchmarks" / "aime24.jsonl",
    "aime25": FIXTURES / "benchmarks" / "aime25.jsonl",
    "amc23": FIXTURES / "benchmarks" / "amc23.jsonl",
    "humaneval": FIXTURES / "benchmarks" / "humaneval.jsonl",
    "mbpp": FIXTURES / "benchmarks" / "mbpp.jsonl",
    "livecodebench": FIXTURES / "benchmarks" / "livecodebench.jsonl",
    "mmlu_pro": FIXTURES / "benchmarks" / "mmlu_pro.jsonl",
    "gpqa": FIXTURES / "benchmarks" / "gpqa.csv",
}


def read(name: str, path: Path | None = None, limit: int | None = None) -> list[RawProblem]:
    return read_benchmark(name, str(path or FILES[name]), limit=limit, key=f"--benchmark {name}")


def message(name: str, path: Path) -> str:
    with pytest.raises(ProblemsError) as caught:
        read(name, path)
    assert str(caught.value).startswith(f"--benchmark {name}: {path}")
    return str(caught.value).removeprefix(f"--benchmark {name}: {path}").lstrip(": ")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_reads_its_own_file_with_answers_of_its_kind(name: str):
    problems = read(name)
    assert problems
    assert {problem.answer_kind for problem in problems} == {BENCHMARKS[name].answer_kind}
    assert read(name, limit=1) == problems[:1]


def test_every_benchmark_says_where_its_defaults_and_its_problems_are_from():
    for name, known in BENCHMARKS.items():
        assert known.name == name
        assert "arXiv" in known.source or "HumanEval" in known.source
        assert hub.is_hub_path(known.dataset)
        assert known.max_tokens <= known.token_budget
        assert known.instruction


@pytest.mark.parametrize("name", ["math500", "aime24", "aime25"])
def test_the_papers_maths_is_decoded_as_the_paper_says(name: str):
    known = benchmark(name)
    assert (known.temperature, known.top_p, known.num_samples, known.max_tokens) == (0.6, 0.95, 16, 32_768)
    assert known.token_budget == 32_768
    assert known.instruction == "Please reason step by step, and put your final answer within \\boxed{}."


def test_livecodebench_is_the_papers_window_at_its_temperature():
    known = benchmark("livecodebench")
    assert (known.temperature, known.num_samples, known.max_tokens) == (0.2, 16, 32_768)
    assert (known.first_date, known.last_date) == (date(2024, 8, 1), date(2025, 1, 31))
    assert [problem.problem_id for problem in read("livecodebench")] == ["made101_b", "9001"]


def test_answers_and_levels_are_as_the_verifiers_and_tables_want_them():
    assert [problem.gold_answer for problem in read("gsm8k")] == ["72", "10", "1080"]
    assert [(problem.gold_answer, problem.level) for problem in read("math500")] == [
        ("\\frac{14}{3}", "3"),
        ("11\\sqrt2", "4"),
        ("6+9i", "3"),
        ("0.15", "2"),
    ]
    assert [problem.gold_answer for problem in read("aime24")] == ["33", "750"]
    assert [problem.gold_answer for problem in read("aime25")] == ["82", "19"]
    assert [problem.gold_answer for problem in read("amc23")] == ["22.5", "-1"]


def test_ids_are_the_files_own_or_the_benchmarks_name_and_row_whatever_the_file_is_called(tmp_path: Path):
    assert read("math500")[0].problem_id == "test/algebra/2584.json"
    assert [problem.problem_id for problem in read("aime24")] == ["90", "91"]
    copy = shutil.copy(FILES["aime25"], tmp_path / "of_my_own.jsonl")
    assert [problem.problem_id for problem in read("aime25", Path(copy))] == ["aime25-00001", "aime25-00002"]


def test_levels_of_math_lose_their_word(tmp_path: Path):
    levels = ["Level 5", "Level ?", 3, 4.0, None]
    rows = [{"problem": "?", "solution": "\\boxed{1}", "level": level, "type": "Algebra"} for level in levels]
    path = tmp_path / "math.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [problem.level for problem in read("math", path)] == ["5", None, "3", "4", None]


def test_math_is_read_from_its_own_folders_of_one_problem_a_file(tmp_path: Path):
    for name, answer in {"algebra/1.json": 1, "algebra/10.json": 10, "geometry/1.json": 3}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        row = {"problem": "?", "level": "Level 2", "type": "Algebra", "solution": f"So $\\boxed{{{answer}}}$."}
        (tmp_path / name).write_text(json.dumps(row, indent=4))
    assert [problem.gold_answer for problem in read("math", tmp_path)] == ["1", "10", "3"]
    (tmp_path / "geometry" / "2.json").write_text("[]")
    with pytest.raises(ProblemsError) as caught:
        read("math", tmp_path)
    assert str(caught.value).startswith(f"--benchmark math: {tmp_path / 'geometry' / '2.json'}: an array, not an object")
    assert message("gsm8k", tmp_path) == "a directory; name one file in it"


def test_mbpp_is_its_test_split_alone():
    assert [problem.problem_id for problem in read("mbpp")] == ["11", "12"]
    assert [problem.problem_id for problem in read("mbpp", FIXTURES / "benchmarks" / "sanitized-mbpp.json")] == ["56"]


def test_a_gzipped_file_is_read_as_it_is(tmp_path: Path):
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(FILES["humaneval"].read_bytes()))
    assert read("humaneval", packed) == read("humaneval")
    packed.write_bytes(packed.read_bytes()[:-20])
    assert message("humaneval", packed).startswith("can't be read (")
    packed.write_bytes(b"no gzip")
    assert message("humaneval", packed).startswith("can't be read (Not a gzipped file")


def test_a_name_that_is_not_known_gets_the_names_and_the_closest():
    with pytest.raises(ProblemsError) as caught:
        benchmark("MATH-500")
    assert str(caught.value) == f"no benchmark is called 'MATH-500'; did you mean math500? There are {', '.join(BENCHMARKS)}"
    with pytest.raises(ProblemsError, match="'zzz'; There are gsm8k, math"):
        benchmark("zzz")


@pytest.mark.parametrize(
    ("name", "other", "expected"),
    [
        ("math500", "humaneval", "line 1: a row of HumanEval's, not of math500's; name math500's own file"),
        ("humaneval", "mbpp", "line 1: a row of MBPP's, not of HumanEval's; name humaneval's own file"),
        ("gsm8k", "mmlu_pro", "line 1: a row of MMLU-Pro's, not of gsm8k's; name gsm8k's own file"),
        (
            "math500",
            "gsm8k",
            'line 1: "answer" has GSM8K\'s "####" and no \\boxed{}; read it as gsm8k, or mend the row',
        ),
        (
            "gsm8k",
            "aime25",
            'line 1: no answer behind "####" in "answer", as GSM8K\'s format has it; mend the row, or name gsm8k\'s own file',
        ),
        (
            "aime24",
            "math500",
            "line 1: \"answer\" is '\\\\frac{14}{3}', no whole number from 0 to 999, as AIME's answers are; mend the row, or "
            "name aime24's own file",
        ),
        (
            "livecodebench",
            "aime25",
            'line 1: no "question_content", "private_test_cases", as LiveCodeBench\'s format has it; the row has "problem", '
            '"answer". Mend the row, or name livecodebench\'s own file',
        ),
    ],
)
def test_says_when_it_is_another_benchmarks_file(name: str, other: str, expected: str):
    assert message(name, FILES[other]) == expected


def test_says_when_the_file_holds_more_than_the_benchmark_has(tmp_path: Path):
    rows = [json.dumps({"problem": f"{n}?", "answer": str(n)}) for n in range(31)]
    (tmp_path / "aime.jsonl").write_text("\n".join(rows))
    assert message("aime25", tmp_path / "aime.jsonl") == (
        "31 problems, but AIME 2025 has 30; name its test split, not that of training"
    )
    assert len(read("aime25", tmp_path / "aime.jsonl", limit=30)) == 30


def test_says_when_no_id_is_of_the_test_split(tmp_path: Path):
    lines = FILES["mbpp"].read_text().splitlines()
    (tmp_path / "mbpp.jsonl").write_text(lines[2])
    assert message("mbpp", tmp_path / "mbpp.jsonl") == (
        "no problem is left of 1: all are with ids outside of 11 to 510; name another file"
    )


def test_the_demos_problems_are_no_benchmark():
    with pytest.raises(ProblemsError, match="the demo's problems are not math500's; name math500's own file"):
        read_benchmark("math500", "demo:test", key="--benchmark math500")
    with pytest.raises(ProblemsError, match="no such file"):
        read_benchmark("math500", "nowhere.jsonl", key="--benchmark math500")
