"""Checked Parquet tables: a folder of parts, one per shard, and a manifest that is written last.

A shard is a fixed set of problems; stage after stage maps shard k of its inputs onto part k of its table. A part appears
under its name only when it is whole, so a killed stage leaves whole parts, and a table without a manifest is not there.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import pyarrow as pa
import pyarrow.parquet as pq

from tokensqueeze.errors import StorageError, TableError
from tokensqueeze.schema import Row, arrow_schema, to_row

MANIFEST = "manifest.json"
LOCK = ".lock"
_COUNTS_KEY = b"tokensqueeze.counts"


@dataclass(frozen=True)
class Table(Generic[Row]):
    """A table at a path, whether or not it is complete."""

    path: Path
    row_type: type[Row]

    def is_complete(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def part_path(self, shard: int) -> Path:
        return self.path / f"part-{shard:05d}.parquet"

    def write_part(self, shard: int, rows: Sequence[Row], counts: Mapping[str, float]) -> None:
        """Write one part, whole or not at all. Zero rows make a file with the schema.

        Raises `StorageError` if the disk is full or the folder can't be written.
        """
        schema = arrow_schema(self.row_type)
        for row in rows:
            if type(row) is not self.row_type:
                raise TableError(f"{self.path}: a row is a {type(row).__name__}, the table holds {self.row_type.__name__}")
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)  # type: ignore[call-overload]
        table = table.replace_schema_metadata({_COUNTS_KEY: json.dumps(dict(counts)).encode()})
        with replacing(self.part_path(shard)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def read_part(self, shard: int) -> list[Row]:
        """Return one part's rows. Raises `TableError` where file and schema disagree."""
        path = self.part_path(shard)
        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise TableError(f"{path}: the part is missing; delete {self.path} and run again to make it anew") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise TableError(f"{path}: not a readable Parquet file ({error}); delete {self.path} and run again") from error
        expected = arrow_schema(self.row_type)
        if table.schema.remove_metadata() != expected:
            differing = sorted(set(map(str, table.schema)) ^ set(map(str, expected)))
            raise TableError(f"{path}: the columns differ from {self.row_type.__name__}: {', '.join(differing)}")
        for name in expected.names:
            if not expected.field(name).nullable and table.column(name).null_count:
                raise TableError(f"{path}: column {name!r} has {table.column(name).null_count} missing values")
        return [to_row(self.row_type, row) for row in table.to_pylist()]

    def part_counts(self, shard: int) -> dict[str, float]:
        """Return what the stage counted while it made this part, without reading its rows."""
        metadata = pq.read_schema(self.part_path(shard)).metadata or {}
        return json.loads(metadata.get(_COUNTS_KEY, b"{}"))

    def has_part(self, shard: int) -> bool:
        return self.part_path(shard).is_file()

    def num_shards(self) -> int:
        return int(self.manifest()["num_shards"])

    def rows(self) -> list[Row]:
        """Return all rows, in shard order."""
        return [row for shard in range(self.num_shards()) for row in self.read_part(shard)]

    def manifest(self) -> dict[str, Any]:
        """Return the manifest. Raises `TableError` if the table is not complete."""
        return read_json(self.path / MANIFEST)

    def complete(self, manifest: Mapping[str, Any]) -> None:
        """Declare the table complete."""
        for leftover in self.path.glob(".*.tmp-*"):
            leftover.unlink(missing_ok=True)
        write_json(self.path / MANIFEST, manifest)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise TableError(f"{path}: no such file; the stage that makes it has not finished") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; make the file readable, or choose another") from error
    except (ValueError, RecursionError) as error:  # malformed JSON, and bytes that are no text
        raise TableError(f"{path}: not valid JSON ({error}); delete it and run again") from error
    if not isinstance(value, dict):
        raise TableError(f"{path}: not a JSON object; delete it and run again")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def make_folder(path: Path) -> Path:
    """Make a folder and its parents. Raises `StorageError` where that is not possible."""
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    return path


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that is written. Raises `StorageError` where one is in it."""
    with storage_errors(folder):
        file = (folder / LOCK).open("w")
    with file:
        try:
            # Let go of by the kernel when this process dies.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"{folder}: another process is writing into it; wait for it, or choose another --output"
            ) from None
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it there once it is written and flushed."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says no to into a `StorageError` that names the path."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno is None:
            raise
        way_out = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise StorageError(f"{path}: {os.strerror(error.errno)}; {way_out}choose another --output") from error
