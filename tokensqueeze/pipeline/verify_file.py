"""Judge any file of responses and gold answers: its rows again, with a verdict each. No Ray, no model.

Judgements gather in a file beside the output; killed at any moment and called again, the same call goes on behind the last of
them. The output is written when all are there, whole or not at all. Memory is bounded by a batch of rows.
"""

import fcntl
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from tokensqueeze import __version__
from tokensqueeze.config import VerifierSettings
from tokensqueeze.errors import TableError
from tokensqueeze.fingerprint import file_fingerprint, fingerprint
from tokensqueeze.pipeline.added_columns import check_formats, file_kind, lines_with, write_copy
from tokensqueeze.pipeline.import_traces import FINISH_REASONS
from tokensqueeze.problems import gsm8k
from tokensqueeze.problems.row_values import as_text
from tokensqueeze.problems.table_file import FileRow, open_rows
from tokensqueeze.schema import AnswerKind
from tokensqueeze.tables import make_folder, storage_errors
from tokensqueeze.verifiers.answers import AnswerVerifier
from tokensqueeze.verifiers.verdict import VERDICT_RULES, Answered, Judgement

COLUMNS = ("verdict", "extracted_answer", "verdict_cause")
ISOLATION = "isolation"
"""A column more where programs were run."""

_BATCH_ROWS = 256
_KEY = "verify"


@dataclass(frozen=True)
class VerifyRequest:
    source: Path
    gold_column: str
    response_column: str
    output: Path | None
    """None: lines of JSON to a stream, with nothing kept for a second call."""
    finish_reason_column: str | None = None
    """Where it says `length` or `max_tokens` the response was cut off and is incorrect; without it, every response has ended by
    itself."""
    answer_kind: AnswerKind = "math"
    verifier: VerifierSettings = field(default_factory=VerifierSettings)
    think_end: str = "</think>"
    processes: int = 1
    overwrite_columns: bool = False

    @property
    def columns(self) -> Sequence[str]:
        return (*COLUMNS, ISOLATION) if self.answer_kind == "code" else COLUMNS


@dataclass(frozen=True)
class VerifyProgress:
    done: int
    """Rows judged, those of an earlier, killed call included."""
    fresh: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class VerifySummary:
    rows: int
    fresh: int
    """Rows judged by this call."""
    seconds: float
    verdicts: Mapping[str, int]
    causes: Mapping[str, int]
    """By `verdict: cause`."""


def verify_file(
    request: VerifyRequest, *, stream: IO[bytes] | None = None, on_progress: Callable[[VerifyProgress], None] = lambda _: None
) -> VerifySummary:
    """Write the source's rows with their verdicts to `request.output`, or else to the stream.

    Every row is looked at before the first is judged. Raises `TableError` for a file, column or row that can't be used, and
    `StorageError` where the disk won't have it.
    """
    _check_paths(request)
    tally = _Tally(_check_rows(request), on_progress)
    if request.output is None:
        assert stream is not None
        judgements = chain.from_iterable(tally.fresh(_judged(request, skip=0)))
        for line in lines_with(request.source, request.columns, map(_added, judgements)):
            stream.write(line)
        stream.flush()
        return tally.summary()
    with _partial(request) as partial:
        tally.count(partial.judgements())
        for batch in tally.fresh(_judged(request, skip=tally.done)):
            partial.append(batch)
        partial.check_source(request)
        write_copy(request.source, request.output, request.columns, map(_added, partial.judgements()))
        partial.path.unlink()
    return tally.summary()


class _Tally:
    """Counts judgements as they pass, and tells how far they are."""

    def __init__(self, rows: int, on_progress: Callable[[VerifyProgress], None]) -> None:
        self._rows, self._on_progress = rows, on_progress
        self._started = time.monotonic()
        self._counts = Counter[tuple[str, str | None]]()
        self._fresh = 0

    @property
    def done(self) -> int:
        return self._counts.total()

    def count(self, judgements: Iterable[Judgement]) -> None:
        self._counts.update((judgement.verdict, judgement.cause) for judgement in judgements)

    def fresh(self, batches: Iterable[list[Judgement]]) -> Iterator[list[Judgement]]:
        for batch in batches:
            self.count(batch)
            self._fresh += len(batch)
            yield batch
            self._on_progress(VerifyProgress(self.done, self._fresh, self._rows, time.monotonic() - self._started))

    def summary(self) -> VerifySummary:
        verdicts, causes = Counter[str](), Counter[str]()
        for (verdict, cause), count in self._counts.items():
            verdicts[verdict] += count
            if cause:
                causes[f"{verdict}: {cause}"] += count
        seconds = time.monotonic() - self._started
        return VerifySummary(self.done, self._fresh, seconds, dict(verdicts), dict(causes.most_common()))


def default_output(source: Path) -> Path:
    """data.jsonl → data.verified.jsonl, beside it."""
    return source.parent / f"{source.stem}.verified{source.suffix}"


def _check_paths(request: VerifyRequest) -> None:
    source, output = request.source, request.output
    if not source.exists():
        raise TableError(f"{source}: no such file; name a JSONL or Parquet file")
    if source.is_dir():
        raise TableError(f"{source}: a directory; name one JSONL or Parquet file in it")
    file_kind(source)
    if output is None:
        return
    file_kind(output)
    if output.is_dir():
        raise TableError(f"{output}: a directory; name a file with --output")
    if output.exists() and output.samefile(source):
        raise TableError(f"{output}: the input itself, which is never written; choose another --output")
    make_folder(output.absolute().parent)


def _check_rows(request: VerifyRequest) -> int:
    """Look at every row and return how many there are."""
    wanted = [name for name in (request.gold_column, request.response_column, request.finish_reason_column) if name]
    known, rows = dict[str, None](), 0
    for row in open_rows(request.source, container=file_kind(request.source), key=_KEY):
        rows += 1
        known.update(dict.fromkeys(row.values))
        taken = [name for name in request.columns if name in row.values]
        if taken and not request.overwrite_columns:
            listed = ", ".join(f'"{name}"' for name in taken)
            raise TableError(f"{row.where}: has {listed} already; take it out, or replace it with --overwrite-columns")
        _answered(row, request)
    for name in wanted:
        if rows and name not in known:
            listed = ", ".join(f'"{column}"' for column in known) or "none"
            raise TableError(f'{request.source}: no column "{name}"; its columns: {listed}')
    check_formats(request.source, file_kind(request.output) if request.output else "jsonl")
    return rows


def _answered(row: FileRow, request: VerifyRequest) -> Answered | Judgement:
    """Return what the verifier is asked, or the judgement where there is nothing to ask."""
    gold = _text(row, request.gold_column, structured=request.answer_kind != "math")
    if request.answer_kind == "math":
        # GSM8K's own column: the worked solution, and the answer behind the marker.
        gold = gsm8k.final_answer(gold) or gold if gold else gold
    response = _text(row, request.response_column)
    if gold is None or not gold.strip():
        return Judgement("unverifiable", None, "no_gold_answer")
    if response is None:
        return Judgement("unverifiable", None, "no_response")
    finish = row.values.get(request.finish_reason_column) if request.finish_reason_column else None
    return Answered(response, gold, FINISH_REASONS.get(str(finish).lower(), "stop"), request.answer_kind)


def _text(row: FileRow, column: str, *, structured: bool = False) -> str | None:
    """Return a value as text, nothing where there is none: 27, 27.0 and "27" are the same answer.

    A `structured` value, such as the options of a choice or the tests of a program, becomes JSON.
    """
    value = row.values.get(column)
    written = json.dumps(value) if structured and isinstance(value, dict | list) else as_text(value)
    if written is None and value is not None:
        raise TableError(
            f'{row.where}: "{column}" is {value!r:.80}, neither text nor a finite number; mend the row, or name another column'
        )
    return written


def _judged(request: VerifyRequest, *, skip: int) -> Iterator[list[Judgement]]:
    """Yield the judgements of all rows behind the first `skip`, in order."""
    rows = islice(open_rows(request.source, container=file_kind(request.source), key=_KEY), skip, None)
    with AnswerVerifier(request.verifier, think_end=request.think_end, processes=request.processes) as verifier:
        while batch := [_answered(row, request) for row in islice(rows, _BATCH_ROWS)]:
            asked = iter(verifier.judge([item for item in batch if isinstance(item, Answered)]))
            yield [next(asked) if isinstance(item, Answered) else item for item in batch]


@dataclass(frozen=True)
class _Partial:
    """The judgements so far: a line for what they are of, and one for each."""

    path: Path
    file: IO[bytes]
    header: bytes

    def append(self, judgements: Iterable[Judgement]) -> None:
        for judgement in judgements:
            self.file.write(json.dumps(list(_fields(judgement))).encode() + b"\n")
        self.file.flush()

    def judgements(self) -> Iterator[Judgement]:
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield Judgement(*json.loads(line))

    def check_source(self, request: VerifyRequest) -> None:
        if _header(request) != self.header:
            raise TableError(f"{request.source}: it was changed while it was judged; run the same command again")


@contextmanager
def _partial(request: VerifyRequest) -> Iterator[_Partial]:
    """Open the judgements of an earlier call, or start anew where they are of another file or of other settings.

    Raises `TableError` where another process is at work on them.
    """
    assert request.output is not None
    path = request.output.with_name(f".{request.output.name}.partial")
    header = _header(request)
    # Around the file, because closing it writes what a full disk has refused once more.
    with storage_errors(path), path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TableError(
                f"{request.output}: another process is writing it; wait for it, or choose another --output"
            ) from None
        file.seek(0)
        if file.readline() != header:
            file.truncate(0)
            file.write(header)
        _drop_torn_line(file)
        yield _Partial(path, file, header)


def _drop_torn_line(file: IO[bytes]) -> None:
    """Cut off what a killed call has left of its last line."""
    file.flush()
    file.seek(0)
    whole = sum(len(line) for line in file if line.endswith(b"\n"))
    file.truncate(whole)


def _header(request: VerifyRequest) -> bytes:
    """Name everything the judgements depend on."""
    name = fingerprint(
        {
            "version": __version__,
            "verdict_rules": VERDICT_RULES,
            "source": file_fingerprint(request.source),
            # A large file's fingerprint leaves parts of it out.
            "changed": request.source.stat().st_mtime_ns,
            "columns": [request.gold_column, request.response_column, request.finish_reason_column],
            "answer_kind": request.answer_kind,
            "verifier": request.verifier.model_dump(),
            "think_end": request.think_end,
        }
    )
    return name.encode() + b"\n"


def _fields(judgement: Judgement) -> tuple[Any, ...]:
    return (judgement.verdict, judgement.extracted_answer, judgement.cause, judgement.isolation)


def _added(judgement: Judgement) -> dict[str, str | None]:
    return dict(zip((*COLUMNS, ISOLATION), _fields(judgement), strict=True))
