"""Read the problems that a setting or a benchmark's name stands for: a file or Hugging Face data set in a known format, or
the demo's own.

The first row decides the format where it is `auto`, and the columns. Later rows must be like it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tokensqueeze.config import ProblemSource
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems import demo, hub, livecodebench
from tokensqueeze.problems.question_answer import question_answer_of
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_formats import ROW_FORMATS, format_of
from tokensqueeze.problems.row_values import text
from tokensqueeze.problems.table_file import Container, FileRow, container_of, open_rows

ID_COLUMNS = ("id", "problem_id", "unique_id", "task_id", "question_id", "Record ID")


def read_problems(
    source: ProblemSource, *, key: str, benchmark: str | None = None, task_ids: range | None = None
) -> list[RawProblem]:
    """Return a source's problems in file order, the first `limit` of them; rows behind the limit are not looked at.

    A problem without an id of its own is named after its file and its line (JSONL) or row, counted from 1; after the benchmark
    and its row, where that is given. `key` is the setting that holds the source, such as `problems.train`. `task_ids` are
    those to keep. Raises `ProblemsError` that names file, row and the way out, at the first row that is wrong.
    """
    if source.path.startswith(demo.PREFIX):
        if benchmark:
            raise ProblemsError(f"{key}: {source.path}: the demo's problems are not {benchmark}'s; name {benchmark}'s own file")
        return demo.demo_problems(source.path, limit=source.limit, seed=source.seed, key=key)
    problems: list[RawProblem] = []
    place_of: dict[str, str] = {}
    reader: _Reader | None = None
    number = 0
    for number, named in enumerate(_named_rows(source, key=key), start=1):
        row = named.row
        found = reader or _reader_of(source, row, key=key, benchmark=benchmark)
        if found.leaves_out(row):
            continue
        # The first row that is kept decides: one without an answer can't tell its shape.
        reader = found
        problem_id = reader.own_id(row) or (f"{benchmark}-{number:05d}" if benchmark else named.fallback_id)
        if task_ids and not (problem_id.isdecimal() and int(problem_id) in task_ids):
            continue
        if problem_id in place_of:
            raise ProblemsError(
                f"{row.where}: the id {problem_id!r} is that of {place_of[problem_id]} too; make the "
                f"ids distinct, or {reader.way_out('id_column')}"
            )
        place_of[problem_id] = row.place
        problems.append(reader.problem(row, problem_id))
        if len(problems) == source.limit:
            break
    if not problems:
        raise ProblemsError(_nothing_text(source, number, task_ids, key=key))
    return problems


@dataclass(frozen=True)
class _NamedRow:
    row: FileRow
    fallback_id: str


@dataclass(frozen=True)
class _Reader:
    """How the rows of one source are read, as its first row and its settings say."""

    source: ProblemSource
    id_column: str | None
    has_dates: bool
    problem: Callable[[FileRow, str], RawProblem]
    is_unanswered: Callable[[FileRow], bool]
    way_out: Callable[[str], str]

    def own_id(self, row: FileRow) -> str | None:
        return text(row, self.id_column, way_out=self.way_out("id_column")) if self.id_column else None

    def leaves_out(self, row: FileRow) -> bool:
        if self.source.unanswered == "drop" and self.is_unanswered(row):
            return True
        if not self.has_dates or not (self.source.first_date or self.source.last_date):
            return False
        day = livecodebench.contest_day(row)
        return not (self.source.first_date or date.min) <= day <= (self.source.last_date or date.max)


def _named_rows(source: ProblemSource, *, key: str) -> Iterator[_NamedRow]:
    container: Container | None = source.format if source.format in ("jsonl", "parquet") else None
    if not hub.is_hub_path(source.path):
        path = Path(source.path)
        if source.format == "math" and path.is_dir():
            container = "folder"
        elif source.format != "auto" and not container_of(path):
            container = container or "jsonl"
        for row in open_rows(path, container=container, key=key):
            yield _NamedRow(row, f"{Path(path.name.removesuffix('.gz')).stem}-{row.number:05d}")
        return
    found = hub.dataset_files(source.path, allow_download=source.allow_download, key=key)
    number = 0
    for path in found.paths:
        for row in open_rows(path, container=container, key=key):
            number += 1
            yield _NamedRow(row, f"{found.name}-{number:05d}")


def _reader_of(source: ProblemSource, row: FileRow, *, key: str, benchmark: str | None) -> _Reader:
    def way_out(setting: str) -> str:
        return _way_out(setting, key=key, benchmark=benchmark)

    name = _format_of(source, row, benchmark=benchmark, way_out=way_out("format"))
    id_column = source.id_column or next((column for column in ID_COLUMNS if column in row.values), None)
    if (source.first_date or source.last_date) and name != "livecodebench":
        raise ProblemsError(f"{key}: first_date and last_date are for livecodebench, whose problems have dates; take them out")
    if name:
        return _Reader(source, id_column, name == "livecodebench", ROW_FORMATS[name].problem, lambda row: False, way_out)
    columns = question_answer_of(source, row, way_out=way_out)
    return _Reader(source, id_column, False, columns.problem, columns.is_unanswered, way_out)


def _format_of(source: ProblemSource, row: FileRow, *, benchmark: str | None, way_out: str) -> str | None:
    """Return the name of the row's format, or nothing where it is of a question and an answer."""
    found = format_of(row)
    if source.format == "auto":
        return None if source.question_column or source.answer_column else found
    wanted = ROW_FORMATS.get(source.format)
    if wanted is None and (found is None or benchmark is None):
        return None
    if wanted and wanted.fits(row):
        return source.format
    title = wanted.title if wanted else benchmark
    if found:
        raise ProblemsError(f"{row.where}: a row of {ROW_FORMATS[found].title}'s, not of {title}'s; {way_out}")
    columns = wanted.columns if wanted else ()
    lacking = ", ".join(f'"{column}"' for column in columns if column not in row.values)
    if lacking:
        raise ProblemsError(
            f"{row.where}: no {lacking}, as {title}'s format has it; the row has {row.columns_text}. Mend the row, or {way_out}"
        )
    # The columns are there, and one is blank: the format's own reader says which.
    return source.format


def _way_out(setting: str, *, key: str, benchmark: str | None) -> str:
    """Return what a message says can be done: with a setting, or, for a benchmark by its name, with the file alone."""
    match setting:
        case "unanswered":
            return "" if benchmark else f', or set {key}.unanswered = "drop"'
        case _ if benchmark:
            return f"name {benchmark}'s own file"
        case "format":
            return f"set {key}.format to what the file is"
        case _:
            return f"name another column with {key}.{setting}"


def _nothing_text(source: ProblemSource, num_rows: int, task_ids: range | None, *, key: str) -> str:
    if not num_rows:
        return f"{key}: {source.path}: no problem in it; give it at least one row with a question and an answer"
    left_out: Sequence[str] = [
        *([f"before {source.first_date}"] if source.first_date else []),
        *([f"after {source.last_date}"] if source.last_date else []),
        *(["without an answer"] if source.unanswered == "drop" else []),
        *([f"with ids outside of {task_ids.start} to {task_ids.stop - 1}"] if task_ids else []),
    ]
    return f"{key}: {source.path}: no problem is left of {num_rows}: all are {' or '.join(left_out)}; name another file"
