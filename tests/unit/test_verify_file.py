"""Files of responses with their verdicts: what is added, what stays, what a kill leaves, what is refused before any work."""

import fcntl
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensqueeze.config import VerifierSettings
from tokensqueeze.errors import ProblemsError, TableError
from tokensqueeze.pipeline.verify_file import VerifyProgress, VerifyRequest, default_output, verify_file

ROWS: list[dict[str, Any]] = [
    {"id": 1, "gold": "3", "response": "<think>4?</think> \\boxed{3}"},
    {"id": 2, "gold": "3", "response": "<think>3</think> \\boxed{4}"},
    {"id": 3, "gold": "3", "response": "no idea"},
]
VERDICTS = ["correct", "incorrect", "no_answer"]


class Killed(Exception):
    """Ends a call in the middle, as SIGKILL would: nothing is tidied up."""


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "mine.jsonl", ROWS)


def request(source: Path, **changed: Any) -> VerifyRequest:
    common: dict[str, Any] = {"gold_column": "gold", "response_column": "response", "output": default_output(source)}
    return VerifyRequest(source, **common | changed)


def judged(source: Path, **changed: Any) -> list[dict[str, Any]]:
    asked = request(source, **changed)
    verify_file(asked)
    assert asked.output
    return [json.loads(line) for line in asked.output.read_text().splitlines()]


def added(row: dict[str, Any]) -> list[Any]:
    return [row["verdict"], row["extracted_answer"], row["verdict_cause"]]


def message(asked: VerifyRequest) -> str:
    with pytest.raises((TableError, ProblemsError)) as caught:
        verify_file(asked)
    return str(caught.value)


def kill_after(rows: int) -> Callable[[VerifyProgress], None]:
    def on_progress(progress: VerifyProgress) -> None:
        if progress.done >= rows:
            raise Killed

    return on_progress


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tokensqueeze.pipeline.verify_file._BATCH_ROWS", 2)
    yield


def test_adds_verdicts_behind_the_columns_that_are_there(source: Path) -> None:
    rows = judged(source)
    assert [list(row) for row in rows] == [["id", "gold", "response", "verdict", "extracted_answer", "verdict_cause"]] * 3
    assert [added(row) for row in rows] == [["correct", "3", None], ["incorrect", "4", None], ["no_answer", None, "no_boxed"]]


def test_gsm8ks_own_column_has_its_answer_behind_the_marker(tmp_path: Path) -> None:
    rows = [{"gold": "2 * 4 = <<2*4=8>>8\n#### 1,008", "response": "\\boxed{1008}"}, {"gold": "####", "response": "\\boxed{8}"}]
    right, without_answer = judged(write_jsonl(tmp_path / "gsm8k.jsonl", rows))
    assert added(right) == ["correct", "1008", None]
    assert without_answer["verdict"] != "correct"


def test_a_response_that_was_cut_off_is_incorrect_whatever_the_server_calls_it(tmp_path: Path) -> None:
    cut = [{"gold": "3", "response": "\\boxed{3}", "why": why} for why in ("length", "max_tokens", "MAX_TOKENS", "stop", None)]
    rows = judged(write_jsonl(tmp_path / "cut.jsonl", cut), finish_reason_column="why")
    assert [row["verdict"] for row in rows] == ["incorrect"] * 3 + ["correct"] * 2


def test_leaves_every_character_of_a_row_as_it_is(tmp_path: Path) -> None:
    line = '{"x":1.10, "big": 12345678901234567890,"e": 1E400, "u": "\\u00e9é", "gold": "3", "response": "\\\\boxed{3}" }'
    source = tmp_path / "mine.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\n" + b'{"gold": "1", "response": ""}')
    before = source.read_bytes()
    verify_file(request(source))
    first, second = default_output(source).read_text().splitlines()
    assert first.startswith(line.removesuffix(" }") + ', "verdict": "correct"')
    assert json.loads(second)["verdict"] == "no_answer"
    assert source.read_bytes() == before


def test_a_number_is_the_gold_answer_that_it_looks_like(tmp_path: Path) -> None:
    golds = [27.0, 27, "27", 0.5]
    answers = ["27", "27", "27", "0.5"]
    rows = [{"gold": gold, "response": f"\\boxed{{{answer}}}"} for gold, answer in zip(golds, answers, strict=True)]
    source = write_jsonl(tmp_path / "mine.jsonl", rows)
    assert [row["verdict"] for row in judged(source)] == ["correct"] * 4


def test_a_choice_has_a_letter_or_letter_and_options_as_gold_answer(tmp_path: Path) -> None:
    gold = {"letter": "B", "options": ["Rome", "Paris"]}
    rows = [
        {"gold": "B", "response": "\\boxed{B}"},
        {"gold": gold, "response": "\\boxed{Paris}"},
        {"gold": json.dumps(gold), "response": "\\boxed{Rome}"},
    ]
    source = write_jsonl(tmp_path / "mine.jsonl", rows)
    assert [row["verdict"] for row in judged(source, answer_kind="choice")] == ["correct", "correct", "incorrect"]


def test_what_lacks_gold_answer_or_response_is_unverifiable_with_its_cause(tmp_path: Path) -> None:
    rows = [{"response": "\\boxed{3}"}, {"gold": None, "response": "x"}, {"gold": " ", "response": "x"}, {"gold": "3"}, *ROWS]
    source = write_jsonl(tmp_path / "mine.jsonl", rows)
    summary = verify_file(request(source))
    assert summary.verdicts == {"unverifiable": 4, "correct": 1, "incorrect": 1, "no_answer": 1}
    assert summary.causes == {
        "unverifiable: no_gold_answer": 3,
        "unverifiable: no_response": 1,
        "no_answer: no_boxed": 1,
    }


def test_a_response_that_was_cut_off_is_incorrect(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"why": "length"}, ROWS[0] | {"why": "stop"}, ROWS[0]]
    source = write_jsonl(tmp_path / "mine.jsonl", rows)
    assert [added(row) for row in judged(source, finish_reason_column="why")] == [
        ["incorrect", None, "truncated"],
        ["correct", "3", None],
        ["correct", "3", None],
    ]


def test_parquet_keeps_its_types_and_its_metadata(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int8()), ("gold", pa.float64()), ("response", pa.large_string())], metadata={"made": "by me"})
    table = pa.table({"n": [1, 2], "gold": [3.0, 0.5], "response": ["\\boxed{3}", "\\boxed{\\frac{1}{2}}"]}, schema=schema)
    source, text = tmp_path / "mine.parquet", pa.string()
    pq.write_table(table, source)
    verify_file(request(source))
    done = pq.read_table(tmp_path / "mine.verified.parquet")
    new = [pa.field(name, text) for name in ("verdict", "extracted_answer", "verdict_cause")]
    assert done.schema.equals(pa.schema([*schema, *new]))
    assert done.schema.metadata[b"made"] == b"by me"
    assert done.select(["n", "gold", "response"]).equals(table)
    assert done["verdict"].to_pylist() == ["correct", "correct"]
    assert done["extracted_answer"].to_pylist() == ["3", "\\frac{1}{2}"]


def test_jsonl_becomes_parquet_and_parquet_jsonl(source: Path, tmp_path: Path) -> None:
    verify_file(request(write_jsonl(source, [*ROWS, ROWS[0] | {"late": [1, 2]}]), output=tmp_path / "a.parquet"))
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["verdict"].to_pylist() == [*VERDICTS, "correct"]
    assert table["late"].to_pylist() == [None, None, None, [1, 2]]
    verify_file(request(tmp_path / "a.parquet", output=tmp_path / "b.jsonl", overwrite_columns=True))
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [1, 2, 3, 1]
    assert [row["verdict"] for row in rows] == [*VERDICTS, "correct"]


def test_an_empty_file_gives_an_empty_file(tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.touch()
    assert verify_file(request(source)).rows == 0
    assert default_output(source).read_bytes() == b""


def test_a_stream_gets_lines_of_json_and_nothing_is_left_on_disk(source: Path) -> None:
    stream = BytesIO()
    verify_file(request(source, output=None), stream=stream)
    assert [json.loads(line)["verdict"] for line in stream.getvalue().splitlines()] == VERDICTS
    assert list(source.parent.iterdir()) == [source]


def test_a_killed_call_goes_on_behind_what_it_has_judged(source: Path, small_batches: None) -> None:
    rows = write_jsonl(source, ROWS * 3)
    with pytest.raises(Killed):
        verify_file(request(rows), on_progress=kill_after(4))
    assert not default_output(rows).exists()
    [partial] = [path for path in rows.parent.iterdir() if path.name.endswith(".partial")]
    # The kill may have cut the last line short.
    partial.write_bytes(partial.read_bytes()[:-3])
    summary = verify_file(request(rows))
    assert (summary.rows, summary.fresh) == (9, 6)
    assert summary.verdicts == dict.fromkeys(VERDICTS, 3)
    assert [json.loads(line)["verdict"] for line in default_output(rows).read_text().splitlines()] == VERDICTS * 3
    assert sorted(path.name for path in rows.parent.iterdir()) == ["mine.jsonl", "mine.verified.jsonl"]


def test_what_was_judged_by_other_settings_is_judged_again(source: Path, small_batches: None) -> None:
    with pytest.raises(Killed):
        verify_file(request(source), on_progress=kill_after(2))
    assert verify_file(request(source, verifier=VerifierSettings(timeout_seconds=9))).fresh == 3


def test_what_was_judged_of_another_file_is_judged_again(source: Path, small_batches: None) -> None:
    with pytest.raises(Killed):
        verify_file(request(source), on_progress=kill_after(2))
    write_jsonl(source, [ROWS[2], *ROWS])
    assert verify_file(request(source)).fresh == 4


def test_a_file_that_changes_while_it_is_judged_is_told(source: Path) -> None:
    def change(progress: VerifyProgress) -> None:
        write_jsonl(source, [ROWS[1], ROWS[1], ROWS[1]])

    with pytest.raises(TableError, match="it was changed while it was judged; run the same command again"):
        verify_file(request(source), on_progress=change)
    assert not default_output(source).exists()


def test_two_calls_do_not_write_the_same_file(source: Path) -> None:
    asked = request(source)
    with (source.parent / ".mine.verified.jsonl.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is writing it; wait for it, or choose another --output" in message(asked)


def test_the_input_is_never_written(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    for output in (source, link):
        assert message(request(source, output=output)).endswith(
            "the input itself, which is never written; choose another --output"
        )


def test_columns_that_are_there_are_replaced_only_if_asked_for(source: Path) -> None:
    write_jsonl(source, [ROWS[0], ROWS[1] | {"verdict": "mine", "late": 1}])
    assert message(request(source)) == (
        f'verify: {source} line 2: has "verdict" already; take it out, or replace it with --overwrite-columns'
    )
    first, second = judged(source, overwrite_columns=True)
    assert (first["verdict"], second["verdict"]) == ("correct", "incorrect")
    assert list(second) == ["id", "gold", "response", "late", "verdict", "extracted_answer", "verdict_cause"]


def test_a_wrong_column_is_told_with_those_there_are(source: Path) -> None:
    assert message(request(source, gold_column="golden")) == (
        f'{source}: no column "golden"; its columns: "id", "gold", "response"'
    )


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"gold": "3", "resp', "line 4: not valid JSON ("),
        ("[1]", "line 4: an array, not an object"),
        ({"gold": ["3"], "response": "x"}, "line 4: \"gold\" is ['3'], neither text nor a finite number"),
        ({"gold": "3", "response": {"text": "x"}}, "line 4: \"response\" is {'text': 'x'}, neither text nor a finite number"),
        ({"gold": True, "response": "x"}, 'line 4: "gold" is True, neither text nor a finite number'),
    ],
)
def test_a_row_that_cannot_be_read_is_told_before_anything_is_judged(source: Path, row: Any, told: str) -> None:
    write_jsonl(source, [*ROWS, row])
    assert told in message(request(source))
    assert list(source.parent.iterdir()) == [source]


def test_what_parquet_cannot_hold_is_told_before_anything_is_judged(source: Path, tmp_path: Path) -> None:
    write_jsonl(source, [ROWS[0], ROWS[1] | {"gold": 3}])
    told = message(request(source, output=tmp_path / "a.parquet"))
    assert told.endswith("a column of Parquet has one type, so write JSONL instead")
    pq.write_table(pa.table({"gold": ["3"], "response": ["x"], "raw": [b"\xff"]}), tmp_path / "b.parquet")
    told = message(request(tmp_path / "b.parquet", output=None))
    assert told.endswith('column "raw" holds bytes, which JSON can\'t; write Parquet instead')
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.parquet", "mine.jsonl"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gone.jsonl", "no such file; name a JSONL or Parquet file"),
        ("mine.txt", "the suffix '.txt' says neither JSONL nor Parquet; name it .jsonl or .parquet"),
        ("", "a directory; name one JSONL or Parquet file in it"),
    ],
)
def test_a_source_that_is_no_table_is_told(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "mine.txt").touch()
    path = tmp_path / name if name else tmp_path
    assert message(request(path, output=tmp_path / "out.jsonl")) == f"{path}: {told}"


def test_half_of_a_surrogate_pair_costs_its_row_nothing(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "mine.jsonl", ['{"gold": "3", "response": "\\ud800 \\\\boxed{\\ud800}"}', ROWS[0]])
    assert [row["verdict"] for row in judged(source)][1] == "correct"
