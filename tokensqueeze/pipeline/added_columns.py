"""A copy of a JSONL or Parquet file with columns added to every row; the other columns stay as they are, in their order.

A JSONL row is a line of text, and the new columns are put before its closing brace: no number or escape is written anew. Files
are read and written in batches, and a copy appears under its name when it is whole.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tokensqueeze.errors import TableError
from tokensqueeze.tables import replacing

Added = Mapping[str, str | None]
"""The new columns of one row."""

Kind = Literal["jsonl", "parquet"]
_KINDS: Mapping[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_BATCH_ROWS = 1024


def file_kind(path: Path) -> Kind:
    """Return what a file's suffix says. Raises `TableError` for one that says neither."""
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise TableError(f"{path}: the suffix {path.suffix!r} says neither JSONL nor Parquet; name it .jsonl or .parquet")
    return kind


def check_formats(source: Path, target_kind: Kind) -> None:
    """See that the other format can hold the source's columns, before there is work to lose. Raises `TableError`."""
    if file_kind(source) == "jsonl" and target_kind == "parquet":
        _schema(source, left_out=())
    elif file_kind(source) == "parquet" and target_kind == "jsonl":
        for column in pq.read_schema(source):
            if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
                raise TableError(f'{source}: column "{column.name}" holds bytes, which JSON can\'t; write Parquet instead')


def write_copy(source: Path, target: Path, columns: Sequence[str], added: Iterable[Added]) -> None:
    """Write `source` with `columns` added to `target`, whole or not at all; `added` has one mapping per row, in order.

    Columns of the source that have the new ones' names are left out. Raises `StorageError` where the disk won't have it.
    """
    with replacing(target) as temporary:
        if file_kind(target) == "parquet":
            _write_parquet(source, temporary, columns, added)
            return
        with temporary.open("wb") as file:
            for line in lines_with(source, columns, added):
                file.write(line)


def lines_with(source: Path, columns: Sequence[str], added: Iterable[Added]) -> Iterator[bytes]:
    """Yield the source's rows as lines of JSON, with the new columns behind their own."""
    lines = _json_lines(source) if file_kind(source) == "jsonl" else map(_json_line, _parquet_rows(source))
    for line, new in zip(lines, added, strict=True):
        yield _with_columns(line, {name: new[name] for name in columns})


def _with_columns(line: bytes, new: Added) -> bytes:
    row = json.loads(line)
    if row.keys() & new.keys():
        line = _json_line({name: value for name, value in row.items() if name not in new})
    if not row.keys() - new.keys():
        return _json_line(new) + b"\n"
    return line.removesuffix(b"}").rstrip() + b", " + _json_line(new).removeprefix(b"{") + b"\n"


def _json_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines that hold an object, without blanks around it and without a byte order mark."""
    with path.open("rb") as file:
        for line in file:
            if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield line


def _json_line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=_json_value).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only spell out
        return json.dumps(row, default=_json_value).encode()


def _json_value(value: object) -> str:
    if isinstance(value, bytes):
        raise TableError("a nested column holds bytes, which JSON can't; write Parquet instead")
    return str(value)  # dates, times and decimals


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()


def _write_parquet(source: Path, target: Path, columns: Sequence[str], added: Iterable[Added]) -> None:
    new_fields = [pa.field(name, pa.string()) for name in columns]
    own = _schema(source, columns)
    remaining = iter(added)
    with pq.ParquetWriter(target, pa.schema([*own, *new_fields], metadata=own.metadata), compression="zstd") as writer:
        for table in _tables(source, own):
            rows = list(islice(remaining, len(table)))
            for field in new_fields:
                values = [_storable(row[field.name]) for row in rows]
                table = table.append_column(field, pa.array(values, pa.string()))
            writer.write_table(table)


def _schema(source: Path, left_out: Sequence[str]) -> pa.Schema:
    """Return the schema of the source's own columns; a JSONL file is read whole for it, batch by batch."""
    if file_kind(source) == "parquet":
        schema = pq.read_schema(source)
    else:
        try:
            schemas = [_schema_of(rows) for rows in _batches(_json_lines(source))]
            schema = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise TableError(f"{source}: {error}; a column of Parquet has one type, so write JSONL instead") from error
    return pa.schema([field for field in schema if field.name not in left_out], metadata=schema.metadata)


def _schema_of(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([pa.field(name, pa.array([row.get(name) for row in rows]).type) for name in names])


def _tables(source: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    if file_kind(source) == "parquet":
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=schema.names):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        return
    for rows in _batches(_json_lines(source)):
        yield pa.Table.from_pylist(rows, schema=schema)


def _batches(lines: Iterator[bytes]) -> Iterator[list[dict[str, Any]]]:
    while batch := [json.loads(line) for line in islice(lines, _BATCH_ROWS)]:
        yield batch


def _storable(text: str | None) -> str | None:
    """Return a text that Parquet can hold: half of a surrogate pair becomes a question mark."""
    return None if text is None else text.encode("utf-8", "replace").decode()
