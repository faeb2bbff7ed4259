"""Stages on Ray: what is done is left alone, what dies is done again, what fails says where."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from tokensqueeze.config import ResourcesSettings
from tokensqueeze.errors import ModelError, StageError, TableError
from tokensqueeze.stages.run_stage import StageProgress, StageRecord, run_stage
from tokensqueeze.stages.stage import ShardResult, Stage
from tokensqueeze.tables import Table

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Word:
    word: str
    length: int


@dataclass(frozen=True)
class Doubled:
    word: str
    made_at: float


WORDS = [["so"], ["hence", "wait"], ["hmm"], ["then", "now", "but"]]
"""Four shards."""


class DoublingWorker:
    """Writes every word twice; on the way, where a test asks for it, it dies or fails on one word."""

    def __init__(self, die_at: str = "", died: Path | None = None, fail_at: str = "", fail_with: Exception | None = None):
        self._die_at, self._died = die_at, died
        self._fail_at, self._fail_with = fail_at, fail_with

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[Doubled]:
        rows = []
        for row in inputs["words"]:
            if row.word == self._die_at and not (self._died and self._died.exists()):
                if self._died:
                    self._died.touch()
                os._exit(1)
            if row.word == self._fail_at and self._fail_with:
                raise self._fail_with
            rows.append(Doubled(row.word * 2, time.time()))
        return ShardResult(rows, tokens=sum(row.length for row in inputs["words"]), counts={"words": len(rows)})


class UnbuildableWorker(DoublingWorker):
    def __init__(self) -> None:
        raise ModelError("model.path: none: no such directory")


class WrongRowWorker:
    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[Any]:
        return ShardResult(inputs["words"])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@dataclass
class Doubling:
    """A stage over some shards of words, and what one call of `run_stage` told."""

    folder: Path
    make_worker: Callable[[], Any] = DoublingWorker
    words: tuple[tuple[str, ...], ...] = tuple(map(tuple, WORDS))

    def __post_init__(self) -> None:
        self.seen: list[StageProgress] = []
        words = Table(self.folder / "words", Word)
        for shard, own in enumerate(self.words):
            words.write_part(shard, [Word(word, len(word)) for word in own], {})
        words.complete({"num_shards": len(self.words)})
        self.output = Table(self.folder / "doubled", Doubled)
        self.stage = Stage(
            "doubled", self.output, {"words": words}, len(self.words), self.make_worker, {"words": 1}, runs_model=False
        )

    def run(self, workers: int = 1) -> StageRecord:
        return run_stage(self.stage, ResourcesSettings(workers=workers), self.seen.append)

    @property
    def rows(self) -> list[str]:
        return [row.word for row in self.output.rows()]


def test_rows_come_in_shard_order_whatever_the_number_of_workers(tmp_path: Path) -> None:
    doubling = Doubling(tmp_path)
    record = doubling.run(workers=2)
    assert doubling.rows == ["soso", "hencehence", "waitwait", "hmmhmm", "thenthen", "nownow", "butbut"]
    assert (record.rows, record.tokens, record.counts) == (7, 2 + 9 + 3 + 10, {"words": 7})
    assert (record.workers, record.reused, record.resumed_shards) == (2, False, 0)


def test_progress_goes_shard_by_shard_to_the_whole(tmp_path: Path) -> None:
    doubling = Doubling(tmp_path)
    doubling.run()
    assert [progress.shards_done for progress in doubling.seen] == [0, 1, 2, 3, 4]
    assert {progress.num_shards for progress in doubling.seen} == {4}
    assert (doubling.seen[-1].rows, doubling.seen[-1].tokens) == (7, 24)


def test_a_complete_table_is_not_made_again(tmp_path: Path) -> None:
    Doubling(tmp_path).run()
    again = Doubling(tmp_path, make_worker=UnbuildableWorker)
    record = again.run()
    assert record.reused
    assert (record.rows, record.tokens, record.counts) == (7, 24, {"words": 7})
    assert again.seen == []


def test_parts_of_an_earlier_run_are_kept_and_counted(tmp_path: Path) -> None:
    doubling = Doubling(tmp_path)
    doubling.output.write_part(1, [Doubled("kept", 0.0)], {"rows": 1, "tokens": 5, "seconds": 1.0, "words": 1})
    before = doubling.output.part_path(1).read_bytes()
    record = doubling.run()
    assert doubling.output.part_path(1).read_bytes() == before
    assert doubling.rows == ["soso", "kept", "hmmhmm", "thenthen", "nownow", "butbut"]
    assert (record.resumed_shards, record.rows, record.tokens) == (1, 6, 2 + 5 + 3 + 10)
    assert (doubling.seen[0].shards_done, doubling.seen[0].rows, doubling.seen[0].tokens) == (1, 1, 0)


def test_all_parts_but_no_manifest_needs_the_manifest_alone(tmp_path: Path) -> None:
    first = Doubling(tmp_path)
    first.run()
    (first.output.path / "manifest.json").unlink()
    again = Doubling(tmp_path, make_worker=UnbuildableWorker)
    record = again.run()
    assert (record.reused, record.resumed_shards, record.rows) == (False, 4, 7)
    assert again.output.is_complete()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_once_costs_the_shard_it_had(tmp_path: Path, workers: int) -> None:
    died = tmp_path / "died"
    doubling = Doubling(tmp_path, make_worker=partial(DoublingWorker, die_at="hmm", died=died))
    record = doubling.run(workers)
    assert died.exists()
    assert doubling.rows == ["soso", "hencehence", "waitwait", "hmmhmm", "thenthen", "nownow", "butbut"]
    assert (record.rows, record.tokens) == (7, 24)


def test_a_shard_that_kills_every_worker_ends_the_stage_with_an_error_instead_of_a_hang(tmp_path: Path) -> None:
    doubling = Doubling(tmp_path, make_worker=partial(DoublingWorker, die_at="hmm"))
    with pytest.raises(StageError, match=r"stage doubled, shard 2: the worker died 3 times on it.*out of memory"):
        doubling.run()
    assert not doubling.output.is_complete()
    assert [doubling.output.has_part(shard) for shard in range(3)] == [True, True, False]

    mended = Doubling(tmp_path)
    assert mended.run().resumed_shards >= 2
    assert len(mended.rows) == 7


def test_an_exception_names_stage_shard_and_traceback_file(tmp_path: Path) -> None:
    doubling = Doubling(tmp_path, make_worker=partial(DoublingWorker, fail_at="now", fail_with=KeyError("now")))
    with pytest.raises(StageError, match=r"stage doubled, shard 3: KeyError: 'now' \(traceback in .*error-shard-00003.txt\)"):
        doubling.run()
    traceback = (doubling.output.path / "error-shard-00003.txt").read_text()
    assert traceback.startswith("Traceback (most recent call last)")
    assert "KeyError: 'now'" in traceback
    assert not doubling.output.is_complete()
    assert not doubling.output.has_part(3)

    mended = Doubling(tmp_path)
    assert mended.run().resumed_shards == 3
    assert {path.name for path in mended.output.path.iterdir()} == {
        "manifest.json",
        *(f"part-0000{shard}.parquet" for shard in range(4)),
    }


def test_an_error_of_the_packages_own_keeps_its_class_and_words(tmp_path: Path) -> None:
    error = TableError("words: column 'word' has 2 missing values")
    doubling = Doubling(tmp_path, make_worker=partial(DoublingWorker, fail_at="so", fail_with=error))
    with pytest.raises(TableError) as raised:
        doubling.run()
    assert (type(raised.value), str(raised.value)) == (TableError, str(error))


def test_a_worker_that_cannot_be_built_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.path: none: no such directory$"):
        Doubling(tmp_path, make_worker=UnbuildableWorker).run()


def test_rows_of_another_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"a row is a Word, the table holds Doubled"):
        Doubling(tmp_path, make_worker=WrongRowWorker).run()


def test_a_shard_without_rows_is_a_part_without_rows(tmp_path: Path) -> None:
    doubling = Doubling(tmp_path, words=(("so",), (), ("now",)))
    record = doubling.run()
    assert doubling.rows == ["soso", "nownow"]
    assert (record.rows, doubling.output.read_part(1)) == (2, [])


def test_a_table_without_rows_is_complete_and_readable(tmp_path: Path) -> None:
    doubling = Doubling(tmp_path, words=((), ()))
    record = doubling.run()
    assert (record.rows, record.tokens, doubling.rows) == (0, 0, [])
    assert doubling.output.is_complete()
    assert Doubling(tmp_path, words=((), ())).run().reused
