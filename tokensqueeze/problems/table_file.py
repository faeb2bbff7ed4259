"""The rows of a JSONL or Parquet file, one by one, each with the words that point at it in a message."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tokensqueeze.errors import ProblemsError

FileFormat = Literal["auto", "jsonl", "parquet", "gsm8k", "math"]
SUFFIXES: Mapping[str, Literal["jsonl", "parquet"]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class FileRow:
    where: str
    """Setting, file and place: the beginning of a message about this row."""
    place: str
    """`line 17` of a JSONL file, `row 17` of a Parquet file."""
    number: int
    values: Mapping[str, object]

    @property
    def columns_text(self) -> str:
        return ", ".join(f'"{name}"' for name in self.values) or "no columns"


def open_rows(path: Path, *, format: FileFormat, key: str) -> Iterator[FileRow]:
    """Yield a file's rows. Raises `ProblemsError` where file or row can't be read."""
    if path.is_dir():
        raise ProblemsError(f"{key}: {path}: a directory; name one JSONL or Parquet file in it")
    if not os.access(path, os.F_OK):
        raise ProblemsError(f"{key}: {path}: no such file; name a JSONL or Parquet file, or demo:train, demo:dev or demo:test")
    kind = format if format in ("jsonl", "parquet") else SUFFIXES.get(path.suffix.lower())
    if kind is None and format == "auto":
        raise ProblemsError(
            f"{key}: {path}: the suffix {path.suffix!r} says neither JSONL nor Parquet; set {key}.format to jsonl, "
            "parquet, gsm8k or math"
        )
    return _parquet_rows(path, key=key) if kind == "parquet" else _jsonl_rows(path, key=key)


def _jsonl_rows(path: Path, *, key: str) -> Iterator[FileRow]:
    try:
        with path.open("rb") as file:
            # Bytes, so that a line that is not UTF-8 has a number.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"line {number}"
                    where = f"{key}: {path} {place}"
                    yield FileRow(where, place, number, _json_object(line, where=where))
    except OSError as error:
        raise ProblemsError(f"{key}: {path}: can't be read ({error.strerror}); make the file readable") from error


def _json_object(line: bytes, *, where: str) -> Mapping[str, object]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ProblemsError(f"{where}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:  # ValueError is malformed JSON, and an integer of thousands of digits
        raise ProblemsError(f"{where}: not valid JSON ({error}); put one whole object on each line") from error
    if not isinstance(value, dict):
        raise ProblemsError(f"{where}: {_json_kind(value)}, not an object; put one object on each line")
    return value


def _json_kind(value: object) -> str:
    match value:
        case list():
            return "an array"
        case str():
            return "a string"
        case None | bool():
            return json.dumps(value)
        case _:
            return "a number"


def _parquet_rows(path: Path, *, key: str) -> Iterator[FileRow]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield FileRow(f"{key}: {path} row {number}", f"row {number}", number, values)
    except (pa.ArrowException, OSError) as error:
        raise ProblemsError(
            f"{key}: {path}: not a readable Parquet file ({error}); write it anew, or set {key}.format if it is JSONL"
        ) from error
