"""Tables on disk: whole or absent, checked on the way in and out."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensqueeze.errors import StorageError, TableError
from tokensqueeze.schema import Candidate, Problem, StepCandidates, Trace, arrow_schema
from tokensqueeze.tables import Table, held, make_folder

STEP = StepCandidates("t", "p", 0, 2, 3, 5, "text", [Candidate("a", [1, 2], 3, 0), Candidate("b", [], 1, 7)], 9)


def test_rows_come_back_as_they_went_in_nested_ones_too(tmp_path: Path) -> None:
    table = Table(tmp_path / "steps", StepCandidates)
    table.write_part(0, [STEP], {"draws": 4})
    table.write_part(1, [], {})
    table.complete({"num_shards": 2})
    assert table.rows() == [STEP]
    assert table.part_counts(0) == {"draws": 4}


def test_a_part_of_zero_rows_has_the_schema(tmp_path: Path) -> None:
    table = Table(tmp_path / "traces", Trace)
    table.write_part(0, [], {})
    assert table.read_part(0) == []
    assert pq.read_schema(table.part_path(0)).names == arrow_schema(Trace).names


def test_a_table_without_manifest_is_not_there(tmp_path: Path) -> None:
    table = Table(tmp_path / "steps", StepCandidates)
    table.write_part(0, [STEP], {})
    assert not table.is_complete()
    with pytest.raises(TableError, match="has not finished"):
        table.rows()


def test_a_writer_that_dies_half_way_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path / "steps", StepCandidates)

    def dies(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", dies)
    with pytest.raises(KeyboardInterrupt):
        table.write_part(0, [STEP], {})
    assert not table.has_part(0)


def test_a_row_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="a row is a StepCandidates, the table holds Problem"):
        Table(tmp_path / "problems", Problem).write_part(0, [STEP], {})  # type: ignore[list-item]


def test_other_columns_are_named(tmp_path: Path) -> None:
    table = Table(tmp_path / "problems", Problem)
    table.path.mkdir()
    pq.write_table(pa.table({"problem_id": ["a"], "reply": ["b"]}), table.part_path(0))
    with pytest.raises(TableError, match=r"differ from Problem: .*reply"):
        table.read_part(0)


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    table = Table(tmp_path / "problems", Problem)
    table.path.mkdir()
    row = {"problem_id": "a", "question": None, "gold_answer": "1", "prompt": "", "prompt_token_ids": []}
    nullable = pa.schema([field.with_nullable(True) for field in arrow_schema(Problem)])
    pq.write_table(pa.Table.from_pylist([row], schema=nullable), table.part_path(0))
    with pytest.raises(TableError, match="question"):
        table.read_part(0)


def test_a_damaged_part_is_named_with_the_way_out(tmp_path: Path) -> None:
    table = Table(tmp_path / "problems", Problem)
    table.path.mkdir()
    table.part_path(0).write_bytes(b"PAR1 not really")
    with pytest.raises(TableError, match=r"not a readable Parquet file.*delete"):
        table.read_part(0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fills_the_disk(*arguments: object, **options: object) -> None:
        with open("/dev/full", "w") as full:
            full.write("x")

    monkeypatch.setattr(pq, "write_table", fills_the_disk)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        Table(tmp_path / "steps", StepCandidates).write_part(0, [STEP], {})


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        make_folder(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        make_folder(tmp_path / "run")


def test_a_folder_that_another_process_writes_is_refused_until_it_has_ended(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from tokensqueeze.tables import held\nwith held(Path({str(tmp_path)!r})): print(); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"\n"
        with pytest.raises(StorageError, match="another process is writing into it"), held(tmp_path):
            pass
        other.kill()
    with held(tmp_path):
        pass
