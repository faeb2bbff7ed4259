"""Stages on Ray: what is done is left alone, what dies is done again, what fails says where."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from tokensqueeze.config import PoolSettings
from tokensqueeze.errors import ModelError, StageError, TableError
from tokensqueeze.stages.run_stage import DRAIN_THREAD, PooledStage, StageProgress, StageRecord, run_stage, run_stages
from tokensqueeze.stages.stage import ShardActor, ShardReport, ShardResult, Stage
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


@dataclass(frozen=True)
class WaitingWorker:
    """Doubles words, but is not done with one of them before a file is there that somebody else has to write."""

    wait_at: str
    wait_for: Path
    seconds_before: float = 0.0

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[Doubled]:
        time.sleep(self.seconds_before)
        deadline = time.monotonic() + 60
        while self.wait_at in [row.word for row in inputs["words"]] and not self.wait_for.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.wait_for.name} was not written meanwhile")
            time.sleep(0.05)
        return DoublingWorker()(inputs)


class ShoutingWorker(DoublingWorker):
    """Takes the doubled words, and like any other may be told to die or fail at one."""

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[Doubled]:
        super().__call__({"words": [Word(row.word, 0) for row in inputs["doubled"]]})
        rows = [Doubled(row.word.upper(), time.time()) for row in inputs["doubled"]]
        return ShardResult(rows, tokens=len(rows))


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
        return run_stage(self.stage, PoolSettings(workers=workers), self.seen.append)

    @property
    def rows(self) -> list[str]:
        return [row.word for row in self.output.rows()]


@dataclass
class Chain:
    """Words doubled and then shouted, and what one call of `run_stages` told."""

    folder: Path
    make_doubling: Callable[[], Any] = DoublingWorker
    make_shouting: Callable[[], Any] = ShoutingWorker
    told: list[tuple[str, str]] = field(default_factory=list)
    seen: list[StageProgress] = field(default_factory=list)

    def __post_init__(self) -> None:
        doubling = Doubling(self.folder, self.make_doubling)
        self.doubled, self.doubling = doubling.output, doubling.stage
        self.shouted = Table(self.folder / "shouted", Doubled)
        inputs = {"doubled": self.doubled}
        self.shouting = Stage("shouted", self.shouted, inputs, len(WORDS), self.make_shouting, {"words": 1}, runs_model=False)

    def run(self, workers: int = 1) -> list[StageRecord]:
        pool = PoolSettings(workers=workers)
        return run_stages([PooledStage(self.doubling, pool), PooledStage(self.shouting, pool)], self)

    def started(self, stage: str) -> None:
        self.told.append(("started", stage))

    def progressed(self, progress: StageProgress) -> None:
        self.seen.append(progress)

    def done(self, record: StageRecord) -> None:
        self.told.append(("done", record.stage))

    def shards_done(self, stage: str) -> list[int]:
        return [progress.shards_done for progress in self.seen if progress.stage == stage]


SHOUTED = ["SOSO", "HENCEHENCE", "WAITWAIT", "HMMHMM", "THENTHEN", "NOWNOW", "BUTBUT"]


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


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_what_ends_the_driver_ends_the_execution_too(tmp_path: Path, error: BaseException) -> None:
    words = tuple((f"word{shard}",) for shard in range(12))
    make_worker = partial(WaitingWorker, wait_at="", wait_for=tmp_path, seconds_before=0.3)
    doubling = Doubling(tmp_path, make_worker, words)

    def fail_at_the_first_shard(progress: StageProgress) -> None:
        if progress.shards_done:
            raise error

    with pytest.raises(type(error)):
        run_stage(doubling.stage, PoolSettings(), fail_at_the_first_shard)
    for thread in [thread for thread in threading.enumerate() if thread.name == DRAIN_THREAD]:
        thread.join(60)
        assert not thread.is_alive()
    # The shards in hand may be finished; the actor that would have gone on to the last is gone.
    time.sleep(1)
    assert not doubling.output.has_part(11)


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


def test_a_shard_goes_on_to_the_next_stage_while_others_are_still_in_the_first(tmp_path: Path) -> None:
    # The last shard can't be doubled before the first is shouted.
    part = Table(tmp_path / "shouted", Doubled).part_path(0)
    chain = Chain(tmp_path, make_doubling=partial(WaitingWorker, wait_at="then", wait_for=part, seconds_before=0.5))
    started = time.monotonic()
    doubled, shouted = chain.run()
    seconds = time.monotonic() - started
    assert [row.word for row in chain.shouted.rows()] == SHOUTED
    assert chain.shouted.read_part(0)[0].made_at < chain.doubled.read_part(3)[0].made_at
    assert chain.told == [("started", "doubled"), ("started", "shouted"), ("done", "doubled"), ("done", "shouted")]
    assert chain.shards_done("doubled") == chain.shards_done("shouted") == [0, 1, 2, 3, 4]
    assert (doubled.rows, doubled.tokens, shouted.rows, shouted.tokens) == (7, 24, 7, 7)
    # The first stage is at work for four times half a second, the second not before the first of them is over.
    assert 2 < doubled.seconds <= seconds
    assert 0 < shouted.seconds < seconds - 0.5


def test_stages_whose_actors_do_not_fit_at_once_run_one_after_the_other(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.run(workers=2)
    assert [row.word for row in chain.shouted.rows()] == SHOUTED
    assert max(row.made_at for row in chain.doubled.rows()) < min(row.made_at for row in chain.shouted.rows())
    assert chain.told == [("started", "doubled"), ("done", "doubled"), ("started", "shouted"), ("done", "shouted")]
    assert [table.manifest()["workers"] for table in (chain.doubled, chain.shouted)] == [2, 2]


def test_a_half_done_chain_makes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    kept = {"rows": 1, "tokens": 5, "seconds": 1.0, "words": 1}
    for table, shard in ((chain.doubled, 0), (chain.doubled, 1), (chain.shouted, 0), (chain.shouted, 2)):
        table.write_part(shard, [Doubled(f"kept{shard}", 0.0)], kept)
    parts = [chain.doubled.part_path(0), chain.doubled.part_path(1), chain.shouted.part_path(0), chain.shouted.part_path(2)]
    before = [path.stat().st_mtime_ns for path in parts]
    doubled, shouted = chain.run()
    assert [path.stat().st_mtime_ns for path in parts] == before
    # Shard 1 goes to the second stage alone, shard 2 to the first alone, shard 3 to both.
    assert [row.word for row in chain.doubled.rows()] == ["kept0", "kept1", "hmmhmm", "thenthen", "nownow", "butbut"]
    assert [row.word for row in chain.shouted.rows()] == ["kept0", "KEPT1", "kept2", "THENTHEN", "NOWNOW", "BUTBUT"]
    assert (doubled.resumed_shards, shouted.resumed_shards) == (2, 2)
    assert (doubled.tokens, shouted.tokens) == (5 + 5 + 3 + 10, 5 + 1 + 5 + 3)


def test_shards_that_the_first_stage_has_done_never_build_its_worker(tmp_path: Path) -> None:
    Chain(tmp_path).run()
    for left in (tmp_path / "doubled" / "manifest.json", tmp_path / "shouted" / "manifest.json"):
        left.unlink()
    Table(tmp_path / "shouted", Doubled).part_path(2).unlink()
    chain = Chain(tmp_path, make_doubling=UnbuildableWorker)
    doubled, shouted = chain.run()
    assert (doubled.reused, doubled.resumed_shards, shouted.reused, shouted.resumed_shards) == (False, 4, False, 3)
    assert [row.word for row in chain.shouted.rows()] == SHOUTED

    again = Chain(tmp_path, make_doubling=UnbuildableWorker, make_shouting=UnbuildableWorker)
    assert [record.reused for record in again.run()] == [True, True]
    assert again.seen == []
    assert again.told == [("started", "doubled"), ("done", "doubled"), ("started", "shouted"), ("done", "shouted")]


def test_a_failure_in_the_second_stage_leaves_the_first_complete(tmp_path: Path) -> None:
    chain = Chain(tmp_path, make_shouting=partial(ShoutingWorker, fail_at="butbut", fail_with=KeyError("butbut")))
    with pytest.raises(
        StageError, match=r"stage shouted, shard 3: KeyError: 'butbut' \(traceback in .*shouted.error-shard-00003"
    ):
        chain.run()
    assert (chain.doubled.is_complete(), chain.shouted.is_complete()) == (True, False)
    assert [chain.shouted.has_part(shard) for shard in range(4)] == [True, True, True, False]

    mended = Chain(tmp_path, make_doubling=UnbuildableWorker)
    doubled, shouted = mended.run()
    assert (doubled.reused, shouted.resumed_shards) == (True, 3)
    assert [row.word for row in mended.shouted.rows()] == SHOUTED


def test_a_failure_in_the_first_stage_is_told_with_its_own_name_and_class(tmp_path: Path) -> None:
    error = TableError("words: column 'word' has 2 missing values")
    chain = Chain(tmp_path, make_doubling=partial(DoublingWorker, fail_at="hmm", fail_with=error))
    with pytest.raises(TableError, match=r"^words: column 'word' has 2 missing values$"):
        chain.run()
    assert not (chain.doubled.is_complete() or chain.shouted.is_complete())
    assert not chain.shouted.has_part(2)


def test_a_worker_of_the_second_stage_that_dies_once_costs_the_shard_it_had(tmp_path: Path) -> None:
    died = tmp_path / "died"
    chain = Chain(tmp_path, make_shouting=partial(ShoutingWorker, die_at="hmmhmm", died=died))
    doubled, shouted = chain.run()
    assert died.exists()
    assert [row.word for row in chain.shouted.rows()] == SHOUTED
    assert (doubled.tokens, shouted.tokens) == (24, 7)


def test_a_pool_grows_to_its_most_workers_while_shards_wait(tmp_path: Path) -> None:
    # The first shard can't be done before another worker has done the second.
    part = Table(tmp_path / "doubled", Doubled).part_path(1)
    doubling = Doubling(tmp_path, make_worker=partial(WaitingWorker, wait_at="so", wait_for=part))
    run_stage(doubling.stage, PoolSettings(workers=1, max_workers=2), doubling.seen.append)
    assert len(doubling.rows) == 7
    manifest = doubling.output.manifest()
    assert (manifest["workers"], manifest["max_workers"]) == (1, 2)


def test_what_streams_is_the_shards_number_and_not_its_rows(tmp_path: Path) -> None:
    actor = ShardActor(Doubling(tmp_path, words=(("so",) * 10_000,)).stage)
    columns = actor({name: [value] for name, value in vars(ShardReport(0)).items()})
    assert columns == {"shard": [0], "failed_stage": [""], "error": [""], "error_type": [""]}
    assert len(Table(tmp_path / "doubled", Doubled).read_part(0)) == 10_000


def test_an_error_passes_the_stages_behind_it_by(tmp_path: Path) -> None:
    failed = ShardReport(0, "words", "no such column", "TableError")
    columns = ShardActor(Doubling(tmp_path, make_worker=UnbuildableWorker).stage)({n: [v] for n, v in vars(failed).items()})
    assert columns == {"shard": [0], "failed_stage": ["words"], "error": ["no such column"], "error_type": ["TableError"]}
