"""Run a stage on Ray Data: shards spread over an actor pool, parts that are there already left alone, manifest last."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from tokensqueeze import errors
from tokensqueeze.config import ResourcesSettings
from tokensqueeze.errors import StageError, TokenSqueezeError
from tokensqueeze.stages.stage import ShardActor, ShardReport, Stage, attempts_mark, error_log
from tokensqueeze.tables import make_folder


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
    """What a stage took, for the report; `seconds` is the wall clock, `busy_seconds` the workers' sum."""

    stage: str
    rows: int
    tokens: int
    seconds: float
    busy_seconds: float
    workers: int
    counts: dict[str, float]
    reused: bool
    resumed_shards: int


def run_stage(stage: Stage[Any], resources: ResourcesSettings, on_progress: Callable[[StageProgress], None]) -> StageRecord:
    """Make the stage's table complete, unless it is.

    Raises the worker's own `TokenSqueezeError`, or `StageError` that names stage and shard.
    """
    if stage.output.is_complete():
        return _record(stage, reused=True)
    make_folder(stage.output.path)
    started = time.monotonic()
    done = [shard for shard in range(stage.num_shards) if stage.output.has_part(shard)]
    earlier = [stage.output.part_counts(shard) for shard in done]
    rows = sum(int(counts["rows"]) for counts in earlier)
    on_progress(StageProgress(stage.name, len(done), stage.num_shards, rows, 0))
    pending = sorted(set(range(stage.num_shards)) - set(done))
    for shard in pending:
        for left_by_earlier_run in (attempts_mark(stage.output, shard), error_log(stage.output, shard)):
            left_by_earlier_run.unlink(missing_ok=True)
    tokens = 0
    for shards_done, report in enumerate(_reports(stage, pending, resources), start=len(done) + 1):
        if report.error:
            _raise(stage, report)
        rows += report.rows
        tokens += report.tokens
        on_progress(StageProgress(stage.name, shards_done, stage.num_shards, rows, tokens))
    missing = [shard for shard in range(stage.num_shards) if not stage.output.has_part(shard)]
    if missing:
        raise StageError(f"stage {stage.name}: shards {missing[:10]} were not written; run the same command again")
    counts: Counter[str] = Counter()
    for shard in range(stage.num_shards):
        counts.update(stage.output.part_counts(shard))
    stage.output.complete(
        {
            "stage": stage.name,
            "num_shards": stage.num_shards,
            "seconds": round(time.monotonic() - started, 3),
            "workers": resources.workers,
            "resumed_shards": len(done),
            "counts": dict(counts),
            "fingerprinted": dict(stage.fingerprinted),
        }
    )
    return _record(stage, reused=False)


def _reports(stage: Stage[Any], shards: list[int], resources: ResourcesSettings):
    if not shards:
        return
    workers = min(resources.workers, len(shards))
    # One block a shard: a worker that is done takes the next, and a lost one costs the shard it had.
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        ShardActor,
        fn_constructor_args=(stage,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker if stage.runs_model else 0,
    )
    for row in dataset.iter_rows():
        yield ShardReport(**row)


def _raise(stage: Stage[Any], report: ShardReport) -> None:
    kind = getattr(errors, report.error_type, None)
    if isinstance(kind, type) and issubclass(kind, TokenSqueezeError):
        raise kind(report.error)
    raise StageError(f"stage {stage.name}, shard {report.shard}: {report.error}")


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
