"""Traces that were made elsewhere: their file as problems and responses, for a run's tables or to be measured as they are.

The file is read once for its problems, and again when its responses are put into a table; then all of them are in memory.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokensqueeze.config import TraceSource
from tokensqueeze.errors import ProblemsError
from tokensqueeze.pipeline.planned_tables import ProblemSet, table_name
from tokensqueeze.problems.question_answer import QUESTION_COLUMNS
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import as_text, text
from tokensqueeze.problems.table_file import FileRow, open_rows
from tokensqueeze.schema import FinishReason, ImportedTrace
from tokensqueeze.tables import Table

RESPONSE_COLUMNS = ("response", "completion", "output", "generation")
GOLD_COLUMNS = ("gold_answer", "expected_answer", "answer", "gold")
FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}


@dataclass(frozen=True)
class TraceFile:
    """What a file of traces holds, its responses left out."""

    source: TraceSource
    problems: list[RawProblem]
    """In the order in which the file comes to them."""
    num_traces: dict[str, int]
    """By problem id."""
    fingerprint: str
    """Of all that was read."""

    def summary(self) -> str:
        counts = sorted(self.num_traces.values())
        each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        return f"{sum(counts):,} traces of {len(counts):,} problems, {each} a problem"


@dataclass(frozen=True)
class ImportedTable:
    """The responses of a file, cut into shards as their problems are."""

    table: Table[ImportedTrace]
    file: TraceFile
    key: str

    def write(self, problems: ProblemSet) -> None:
        """Write the table, unless it is there. Responses to problems that were left out are left out too."""
        if self.table.is_complete():
            return
        by_problem: dict[str, list[ImportedTrace]] = defaultdict(list)
        for _, trace in read_traces(self.file.source, key=self.key):
            by_problem[trace.problem_id].append(trace)
        shards = problems.shards()
        for index, shard in enumerate(shards):
            rows = [trace for problem in shard for trace in by_problem[problem.problem_id]]
            self.table.write_part(index, rows, {"rows": len(rows)})
        self.table.complete({"stage": self.table.path.parent.name, "num_shards": len(shards)})


def read_trace_file(source: TraceSource, *, key: str) -> TraceFile:
    """Read a file's problems and count its traces. `key` is the setting that holds the source.

    Raises `ProblemsError` that names the row and the way out, at the first row that is wrong.
    """
    problems: dict[str, RawProblem] = {}
    num_traces, digest = Counter[str](), hashlib.sha256()
    for problem, trace in read_traces(source, key=key):
        problems[problem.problem_id] = problem
        num_traces[problem.problem_id] += 1
        digest.update(json.dumps([*asdict(problem).values(), *asdict(trace).values()]).encode() + b"\n")
    if not problems:
        raise ProblemsError(f"{key}: {source.path}: no trace in it; give it at least one row")
    return TraceFile(source, list(problems.values()), dict(num_traces), digest.hexdigest()[:16])


def imported_table(file: TraceFile, problems: ProblemSet, store: Path, *, key: str) -> ImportedTable:
    """Plan the table of a file's responses."""
    name = table_name({"imported": file.fingerprint, "problems": problems.fingerprint})
    return ImportedTable(Table(store / "imported_traces" / name, ImportedTrace), file, key)


def read_traces(source: TraceSource, *, key: str) -> Iterator[tuple[RawProblem, ImportedTrace]]:
    """Yield every row's problem and response, in file order. Raises `ProblemsError`."""
    reader = None
    for row in open_rows(Path(source.path), container=None, key=key):
        reader = reader or _Reader(source, _columns_of(source, row, key=key), key)
        yield reader.read(row)


@dataclass(frozen=True)
class _Columns:
    question: str
    response: str
    gold: str
    problem_id: str | None
    sample: str | None
    finish_reason: str | None


def _columns_of(source: TraceSource, row: FileRow, *, key: str) -> _Columns:
    def needed(named: str | None, defaults: Sequence[str], setting: str) -> str:
        wanted = [named] if named else defaults
        found = next((name for name in wanted if name in row.values), None)
        if found is None:
            listed = " or ".join(f'"{name}"' for name in wanted)
            raise ProblemsError(
                f"{row.where}: no {listed}; the row has {row.columns_text}. Name the column with {key}.{setting}"
            )
        return found

    def optional(named: str | None, default: str, setting: str) -> str | None:
        return needed(named, (), setting) if named else default if default in row.values else None

    return _Columns(
        needed(source.question_column, QUESTION_COLUMNS, "question_column"),
        needed(source.response_column, RESPONSE_COLUMNS, "response_column"),
        needed(source.gold_column, GOLD_COLUMNS, "gold_column"),
        optional(source.id_column, "problem_id", "id_column"),
        optional(source.sample_column, "sample_index", "sample_column"),
        optional(source.finish_reason_column, "finish_reason", "finish_reason_column"),
    )


@dataclass
class _Reader:
    """Reads rows one by one, and remembers problems and sample numbers, not responses."""

    source: TraceSource
    columns: _Columns
    key: str
    problems: dict[str, RawProblem] = field(default_factory=dict)
    gold_of: dict[str, str] = field(default_factory=dict)
    """By question."""
    place_of: dict[Any, str] = field(default_factory=dict)
    """Where a question, an id, or a problem's sample was met first."""
    samples: Counter[str] = field(default_factory=Counter)

    def read(self, row: FileRow) -> tuple[RawProblem, ImportedTrace]:
        problem = self._problem(row)
        index = self._sample_index(row, problem.problem_id)
        trace = ImportedTrace(problem.problem_id, index, self._response(row), self._finish_reason(row))
        return problem, trace

    def _problem(self, row: FileRow) -> RawProblem:
        columns, key = self.columns, self.key
        question = text(row, columns.question, way_out=f"name another column with {key}.question_column")
        gold = text(row, columns.gold, way_out=f"name another column with {key}.gold_column").strip()
        if self.gold_of.setdefault(question, gold) != gold:
            raise ProblemsError(
                f"{row.where}: the gold answer is {gold!r}, and {self.gold_of[question]!r} for the same question on "
                f"{self.place_of[question]}; mend one of them"
            )
        if columns.problem_id:
            name = text(row, columns.problem_id, way_out=f"name another column with {key}.id_column")
        else:
            # As the problem files' own: by the row that has it first.
            name = f"{Path(self.source.path).stem}-{_number(self.place_of.setdefault(question, row.place)):05d}"
        self.place_of.setdefault(question, row.place)
        known = self.problems.setdefault(name, RawProblem(name, question, gold, self.source.answer_kind))
        if known.question != question:
            raise ProblemsError(
                f"{row.where}: the problem {name!r} had another question on {self.place_of[known.question]}; mend the row, "
                f"or name another column with {key}.id_column"
            )
        return known

    def _sample_index(self, row: FileRow, problem_id: str) -> int:
        column = self.columns.sample
        index = self.samples[problem_id]
        self.samples[problem_id] += 1
        if column is None:
            return index
        written = as_text(row.values.get(column)) or ""
        if not written.isdecimal():
            raise ProblemsError(
                f'{row.where}: "{column}" is {row.values.get(column)!r}, no whole number; mend the row, or name another column '
                f"with {self.key}.sample_column"
            )
        place = self.place_of.setdefault((problem_id, int(written)), row.place)
        if place != row.place:
            raise ProblemsError(
                f"{row.where}: sample {written} of problem {problem_id!r} is on {place} too; take one out, or name another "
                f"column with {self.key}.sample_column"
            )
        return int(written)

    def _response(self, row: FileRow) -> str:
        value = row.values.get(self.columns.response, ...)
        if not isinstance(value, str):
            given = "missing" if value in (None, ...) else f"a {type(value).__name__}, not text"
            raise ProblemsError(
                f'{row.where}: "{self.columns.response}" is {given}; take the row out, or name another column with '
                f"{self.key}.response_column"
            )
        # Half of a surrogate pair is nothing that a tokenizer knows.
        return value.encode("utf-8", "replace").decode()

    def _finish_reason(self, row: FileRow) -> FinishReason | None:
        column = self.columns.finish_reason
        value = row.values.get(column) if column else None
        if value is None:
            return None
        reason = FINISH_REASONS.get(str(value).lower())
        if reason is None:
            raise ProblemsError(
                f'{row.where}: "{column}" is {value!r}; known are {", ".join(FINISH_REASONS)}: take the row out, or name '
                f"another column with {self.key}.finish_reason_column"
            )
        return reason


def _number(place: str) -> int:
    """`line 17` → 17."""
    return int(place.rpartition(" ")[2])
