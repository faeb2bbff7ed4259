"""The rows of a JSONL, JSON, CSV or Parquet file, one by one, each with the words that point at it in a message."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tokensqueeze.errors import ProblemsError

Container = Literal["jsonl", "json", "csv", "parquet", "folder"]
"""`folder`: one object in each `.json` file of a folder and those in it, as MATH is published."""
SUFFIXES: Mapping[str, Container] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
# Few at a time: a row of LiveCodeBench holds megabytes of tests.
_BATCH_ROWS = 64


@dataclass(frozen=True)
class FileRow:
    where: str
    """Setting, file and place: the beginning of a message about this row."""
    place: str
    """`line 17` of a JSONL file, `row 17` of any other."""
    number: int
    values: Mapping[str, object]

    @property
    def columns_text(self) -> str:
        return ", ".join(f'"{name}"' for name in self.values) or "no columns"


def container_of(path: Path) -> Container | None:
    """Return what a file's name says that it is; `.gz` behind that makes no difference."""
    return SUFFIXES.get(Path(path.name.lower().removesuffix(".gz")).suffix)


def open_rows(path: Path, *, container: Container | None, key: str) -> Iterator[FileRow]:
    """Yield a file's rows; without a container, its name says what it is. Raises `ProblemsError` where file or row can't be
    read."""
    if path.is_dir() and container == "folder":
        return _folder_rows(path, key=key)
    if path.is_dir():
        raise ProblemsError(f"{key}: {path}: a directory; name one file in it")
    if not os.access(path, os.F_OK):
        raise ProblemsError(f"{key}: {path}: no such file; name a JSONL, Parquet, CSV or JSON file, hf:OWNER/NAME or demo:test")
    match container or container_of(path):
        case "parquet":
            return _parquet_rows(path, key=key)
        case "csv":
            return _csv_rows(path, key=key)
        case "json" if _is_array(path):
            return _array_rows(path, key=key)
        case "json" | "jsonl":
            return _jsonl_rows(path, key=key)
        case None | "folder":
            raise ProblemsError(
                f"{key}: {path}: its name says neither JSONL nor Parquet, CSV or JSON; rename it, or set {key}.format"
            )


def _open(path: Path) -> AbstractContextManager[BinaryIO]:
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _unreadable(path: Path, error: Exception, *, key: str) -> ProblemsError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ProblemsError(f"{key}: {path}: can't be read ({reason}); make the file readable, or fetch it anew")


def _jsonl_rows(path: Path, *, key: str) -> Iterator[FileRow]:
    try:
        with _open(path) as file:
            # Bytes, so that a line that is not UTF-8 has a number.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"line {number}"
                    where = f"{key}: {path} {place}"
                    yield FileRow(where, place, number, _json_object(line, where=where))
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error, key=key) from error


def _json_object(line: bytes, *, where: str) -> Mapping[str, object]:
    return _object(_json_value(line, where=where, way_out="put one whole object on each line"), where=where)


def _json_value(text: bytes, *, where: str, way_out: str) -> object:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ProblemsError(f"{where}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:  # ValueError is malformed JSON, and an integer of thousands of digits
        raise ProblemsError(f"{where}: not valid JSON ({error}); {way_out}") from error


def _object(value: object, *, where: str) -> Mapping[str, object]:
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


def _is_array(path: Path) -> bool:
    """Tell an array of objects from lines of them: both are called `.json`."""
    try:
        with _open(path) as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    except (OSError, EOFError, zlib.error):
        return False  # The reader of lines says what is wrong.


def _array_rows(path: Path, *, key: str) -> Iterator[FileRow]:
    try:
        with _open(path) as file:
            text = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error, key=key) from error
    rows = cast(list[object], _json_value(text, where=f"{key}: {path}", way_out="give it one whole array of objects"))
    for number, value in enumerate(rows, start=1):
        where = f"{key}: {path} row {number}"
        yield FileRow(where, f"row {number}", number, _object(value, where=where))


def _folder_rows(path: Path, *, key: str) -> Iterator[FileRow]:
    for number, file in enumerate(sorted(path.rglob("*.json")), start=1):
        where = f"{key}: {file}"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise _unreadable(file, error, key=key) from error
        yield FileRow(where, str(file.relative_to(path)), number, _json_object(content, where=where))


def _csv_rows(path: Path, *, key: str) -> Iterator[FileRow]:
    try:
        with _open(path) as file:
            text = file.read().decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        for number, values in enumerate(rows, start=1):
            where = f"{key}: {path} row {number}"
            # DictReader puts surplus fields under None, and None into those that are missing.
            if None in values or None in values.values():
                raise ProblemsError(f"{where}: not as many fields as the header has; mend the row")
            yield FileRow(where, f"row {number}", number, values)
    except UnicodeDecodeError as error:
        raise ProblemsError(f"{key}: {path}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
    except csv.Error as error:
        raise ProblemsError(f"{key}: {path}: not valid CSV ({error}); write it anew, with quotes where they are due") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error, key=key) from error


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
