"""Run stages on Ray Data: shards stream from one stage's actors to the next's, parts that are there already are left alone.

Rows stay in the tables; what streams is shard numbers and errors. What is done is read off the disk: a shard is when its
part is there, a table when its manifest is, and that is written as soon as the last part is.
"""

import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import ray
import ray._private.state
import ray.data

from tokensqueeze import errors
from tokensqueeze.config import PoolSettings
from tokensqueeze.errors import StageError, TokenSqueezeError
from tokensqueeze.stages.stage import ShardActor, ShardReport, Stage, attempts_mark, error_log
from tokensqueeze.tables import make_folder

DRAIN_THREAD = "tokensqueeze shard reports"
"""The thread that runs a chain on Ray Data, while the main one looks at what has come."""

_LOOK_SECONDS = 0.25
"""How often the disk is looked at for parts of a stage that is not the last of its chain."""


@dataclass(frozen=True)
class PooledStage:
    """A stage and the actors that it runs on."""

    stage: Stage[Any]
    pool: PoolSettings


@dataclass(frozen=True)
class StageProgress:
    """Shards, rows and tokens done, those of an earlier, killed run included in the shards and rows."""

    stage: str
    shards_done: int
    num_shards: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class StageRecord:
    """What a stage took, for the report; `seconds` is the wall clock, `busy_seconds` the workers' sum.

    A stage that shards stream into is on the clock from the first that is ready for it to the last that it has done.
    """

    stage: str
    rows: int
    tokens: int
    seconds: float
    busy_seconds: float
    workers: int
    counts: dict[str, float]
    reused: bool
    resumed_shards: int


class StageListener(Protocol):
    """Hears of the stages of a chain, of which several may be under way at once."""

    def started(self, stage: str) -> None: ...

    def progressed(self, progress: StageProgress) -> None: ...

    def done(self, record: StageRecord) -> None: ...


def run_stage(stage: Stage[Any], pool: PoolSettings, on_progress: Callable[[StageProgress], None]) -> StageRecord:
    """Make one stage's table complete, unless it is: a chain of one."""
    [record] = run_stages([PooledStage(stage, pool)], _ProgressListener(on_progress))
    return record


def run_stages(chain: Sequence[PooledStage], listener: StageListener) -> list[StageRecord]:
    """Make the tables of a chain complete, unless they are; each stage reads what the one before it writes, shard by shard.

    All stages are at work at once where the cluster has room for all their actors, else one after the other. Raises the
    worker's own `TokenSqueezeError`, or `StageError` that names stage and shard; tables that are whole by then are complete.
    """
    making = []
    for pooled in chain:
        if pooled.stage.output.is_complete():
            listener.started(pooled.stage.name)
            listener.done(_record(pooled.stage, reused=True))
        else:
            make_folder(pooled.stage.output.path)
            making.append(_TableInMaking(pooled.stage, pooled.pool, listener))
    at_once = len(making) < 2 or _fit_at_once(making)
    for tables in [making] if at_once else [[table] for table in making]:
        _make(tables)
    reused = {pooled.stage.name for pooled in chain} - {table.stage.name for table in making}
    return [_record(pooled.stage, reused=pooled.stage.name in reused) for pooled in chain]


class _TableInMaking:
    """A stage's table while its parts come in."""

    def __init__(self, stage: Stage[Any], pool: PoolSettings, listener: StageListener):
        self.stage = stage
        self.pending = {shard for shard in range(stage.num_shards) if not stage.output.has_part(shard)}
        # More actors than shards would have nothing to do.
        self.min_actors = min(pool.workers, len(self.pending))
        self.max_actors = min(pool.max_workers or pool.workers, len(self.pending))
        self.cpus = pool.cpus_per_worker
        self.gpus = pool.gpus_per_worker if stage.runs_model else 0
        self._pool, self._listener = pool, listener
        self._started = math.inf
        self._resumed = stage.num_shards - len(self.pending)
        self._counts: Counter[str] = Counter()
        for shard in set(range(stage.num_shards)) - self.pending:
            self._counts.update(stage.output.part_counts(shard))
        self._fresh_tokens = 0
        self._is_complete = False

    def start(self) -> None:
        self._listener.started(self.stage.name)
        for shard in self.pending:
            for left_by_earlier_run in (attempts_mark(self.stage.output, shard), error_log(self.stage.output, shard)):
                left_by_earlier_run.unlink(missing_ok=True)
        self._tell()

    def start_clock(self) -> None:
        self._started = min(self._started, time.monotonic())

    def look(self, *, come_through: int | None) -> None:
        """Count the parts that are new on disk, and complete the table with the last of them.

        A shard that has come through all stages has a part in each, though a network disk may be late to show it.
        """
        if self._is_complete:
            return
        there = {path.name for path in self.stage.output.path.iterdir()}
        for shard in sorted(self.pending):
            if shard == come_through or self.stage.output.part_path(shard).name in there:
                self.pending.remove(shard)
                counts = self.stage.output.part_counts(shard)
                # A look may come late: what took so long to make was begun that long ago.
                self._started = min(self._started, time.monotonic() - counts["seconds"])
                self._counts.update(counts)
                self._fresh_tokens += int(counts["tokens"])
                self._tell()
        if not self.pending:
            self._complete()

    def _tell(self) -> None:
        done = self.stage.num_shards - len(self.pending)
        rows = int(self._counts["rows"])
        self._listener.progressed(StageProgress(self.stage.name, done, self.stage.num_shards, rows, self._fresh_tokens))

    def _complete(self) -> None:
        self._is_complete = True
        self.start_clock()
        self.stage.output.complete(
            {
                "stage": self.stage.name,
                "num_shards": self.stage.num_shards,
                "seconds": round(time.monotonic() - self._started, 3),
                "workers": self._pool.workers,
                "max_workers": self._pool.max_workers or self._pool.workers,
                "resumed_shards": self._resumed,
                "counts": dict(self._counts),
                "fingerprinted": dict(self.stage.fingerprinted),
            }
        )
        self._listener.done(_record(self.stage, reused=False))


def _fit_at_once(tables: Sequence[_TableInMaking]) -> bool:
    """Return whether the cluster has, or may grow to, what the actors of all these stages need."""
    # Ray knows a most only where it was told how it may scale; else what is there is what there will be.
    has = ray._private.state.state.get_max_resources_from_cluster_config() or ray.cluster_resources()
    needs = {
        "CPU": sum(table.min_actors * table.cpus for table in tables),
        "GPU": sum(table.min_actors * table.gpus for table in tables),
    }
    return all(amount <= has.get(name, 0) for name, amount in needs.items())


def _make(tables: Sequence[_TableInMaking]) -> None:
    for table in tables:
        table.start()
    # All parts of a table may be there, and its manifest alone be missing.
    _look(tables)
    tables = [table for table in tables if table.pending]
    if not tables:
        return
    # Closed at once, where a look fails: an iterator that an error's traceback holds lives on.
    with closing(_reports(tables)) as reports:
        for report in reports:
            if report is None:
                _look(tables[:-1])
            elif report.error:
                _look(tables)
                _raise(report)
            else:
                _look(tables, come_through=report.shard)
    for table in tables:
        if missing := sorted(table.pending):
            raise StageError(f"stage {table.stage.name}: shards {missing[:10]} were not written; run the same command again")


def _look(tables: Sequence[_TableInMaking], *, come_through: int | None = None) -> None:
    for index, table in enumerate(tables):
        if index == 0 or table.pending - tables[index - 1].pending:
            table.start_clock()
        table.look(come_through=come_through)


def _reports(tables: Sequence[_TableInMaking]) -> Generator[ShardReport | None, None, None]:
    """Yield a report for every shard that has come through all stages, or has failed; None when none came for a while.

    Closed, or left by an error or Ctrl-C, it ends the execution with the next shard that comes through.
    """
    first, *later = tables
    # Those that pass the first stage by go ahead of those that it has to work on.
    passing = sorted(set().union(*(table.pending for table in later)) - first.pending)
    shards = [*passing, *sorted(first.pending)]
    # One block a shard: a worker that is done takes the next, and a lost one costs the shard it had.
    items = [asdict(ShardReport(shard)) for shard in shards]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    # With one shard an actor a pool is never busier than this, and with Ray's own threshold would never grow.
    dataset.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    for table in tables:
        dataset = dataset.map_batches(
            ShardActor,
            fn_constructor_args=(table.stage,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=table.min_actors, max_size=table.max_actors, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=table.cpus,
            num_gpus=table.gpus,
        )
    arrived: queue.SimpleQueue[ShardReport | BaseException | None] = queue.SimpleQueue()
    unwanted = threading.Event()
    threading.Thread(target=_drain, args=(dataset, arrived, unwanted), name=DRAIN_THREAD, daemon=True).start()
    try:
        while True:
            try:
                came = arrived.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                yield None
                continue
            if came is None:
                return
            if isinstance(came, BaseException):
                raise came
            yield came
    finally:
        unwanted.set()


def _drain(
    dataset: ray.data.Dataset,
    arrived: "queue.SimpleQueue[ShardReport | BaseException | None]",
    unwanted: threading.Event,
) -> None:
    """Run the data set to its end, its first failed shard or until unwanted, putting its rows, then None or what ended it."""
    try:
        for row in dataset.iter_rows():
            report = ShardReport(**row)
            arrived.put(report)
            if report.error or unwanted.is_set():
                # To stop asking ends the execution.
                break
        arrived.put(None)
    except BaseException as error:
        arrived.put(error)


def _raise(report: ShardReport) -> None:
    kind = getattr(errors, report.error_type, None)
    if isinstance(kind, type) and issubclass(kind, TokenSqueezeError):
        raise kind(report.error)
    raise StageError(f"stage {report.failed_stage}, shard {report.shard}: {report.error}")


def _record(stage: Stage[Any], *, reused: bool) -> StageRecord:
    manifest = stage.output.manifest()
    counts = dict(manifest["counts"])
    rows, tokens, busy = int(counts.pop("rows", 0)), int(counts.pop("tokens", 0)), counts.pop("seconds", 0.0)
    return StageRecord(
        stage.name,
        rows,
        tokens,
        manifest["seconds"],
        round(busy, 3),
        manifest["workers"],
        counts,
        reused,
        manifest["resumed_shards"],
    )


class _ProgressListener:
    """Passes on the progress alone."""

    def __init__(self, on_progress: Callable[[StageProgress], None]):
        self._on_progress = on_progress

    def started(self, stage: str) -> None: ...

    def progressed(self, progress: StageProgress) -> None:
        self._on_progress(progress)

    def done(self, record: StageRecord) -> None: ...
