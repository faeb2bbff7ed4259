"""What a stage is, and what one of its workers does: one shard in, one part out, any number of times over."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol

from tokensqueeze.errors import TokenSqueezeError
from tokensqueeze.schema import Row
from tokensqueeze.tables import Table, write_text

ATTEMPTS = 3
"""A worker may be lost with its machine; one that dies this often on one shard dies of the shard."""


@dataclass(frozen=True)
class ShardResult(Generic[Row]):
    rows: list[Row]
    tokens: int = 0
    """Tokens generated or scored."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What the report should know: rows dropped and why, causes of odd verdicts."""


class ShardWorker(Protocol[Row]):
    """Built once per actor, so that a model is loaded once; called with the input tables' rows of one shard.

    It must not remember anything from one shard to the next that changes a result.
    """

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[Row]: ...


@dataclass(frozen=True)
class Stage(Generic[Row]):
    name: str
    output: Table[Row]
    inputs: Mapping[str, Table[Any]]
    num_shards: int
    make_worker: Callable[[], ShardWorker[Row]]
    """Picklable: Ray carries it to the actors."""
    fingerprinted: Mapping[str, Any]
    """Everything the rows depend on; the table's folder is named by its fingerprint."""
    runs_model: bool


@dataclass(frozen=True)
class ShardReport:
    """What goes from stage to stage, and to the driver, of one shard: its rows stay on disk."""

    shard: int
    failed_stage: str = ""
    error: str = ""
    error_type: str = ""


class ShardActor:
    """Runs a stage's worker on shards, for `ray.data.Dataset.map_batches`; those that have a part pass through."""

    def __init__(self, stage: Stage[Any]):
        self._stage = stage
        self._worker: ShardWorker[Any] | None = None

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        columns = (batch["shard"], batch["failed_stage"], batch["error"], batch["error_type"])
        came = [ShardReport(int(shard), *map(str, rest)) for shard, *rest in zip(*columns, strict=True)]
        goes = [report if report.error else self._run(report.shard) for report in came]
        return {name: [getattr(report, name) for report in goes] for name in ShardReport.__dataclass_fields__}

    def _run(self, shard: int) -> ShardReport:
        # Of an earlier run, or of this one: where a machine is lost with its reports, Ray asks for them again.
        if self._stage.output.has_part(shard):
            return ShardReport(shard)
        started = time.monotonic()
        mark = attempts_mark(self._stage.output, shard)
        attempt = len(mark.read_text()) + 1 if mark.exists() else 1
        if attempt > ATTEMPTS:
            # Ray would go on for ever.
            return self._failed(
                shard,
                f"the worker died {ATTEMPTS} times on it, perhaps out of memory; try fewer resources.workers, or smaller "
                "engine.max_batch_size, max_tokens or per_shard",
                "",
            )
        try:
            write_text(mark, "x" * attempt)
            if self._worker is None:
                self._worker = self._stage.make_worker()
            result = self._worker({name: table.read_part(shard) for name, table in self._stage.inputs.items()})
            seconds = round(time.monotonic() - started, 3)
            counts = {"rows": len(result.rows), "tokens": result.tokens, "seconds": seconds, **result.counts}
            self._stage.output.write_part(shard, result.rows, counts)
            return ShardReport(shard)
        except TokenSqueezeError as error:
            return self._failed(shard, str(error), type(error).__name__)
        except Exception as error:  # told to the driver, with the traceback kept: it must reach a person as one line
            log = error_log(self._stage.output, shard)
            write_text(log, traceback.format_exc())
            return self._failed(shard, f"{type(error).__name__}: {error} (traceback in {log})", "")
        finally:
            # Not reached where the process dies: then the mark tells the next worker.
            mark.unlink(missing_ok=True)

    def _failed(self, shard: int, error: str, error_type: str) -> ShardReport:
        return ShardReport(shard, self._stage.name, error, error_type)


def attempts_mark(output: Table[Any], shard: int) -> Path:
    """Return the file that is there while a worker has the shard, and stays when it dies: one letter an attempt."""
    return output.path / f".attempts-shard-{shard:05d}"


def error_log(output: Table[Any], shard: int) -> Path:
    """Return the file that keeps the traceback of a shard that failed."""
    return output.path / f"error-shard-{shard:05d}.txt"
