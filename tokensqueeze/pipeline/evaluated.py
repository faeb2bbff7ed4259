"""What has been evaluated in a folder that `tokensqueeze evaluate` or `tokensqueeze run` has left, ready to be compared."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from tokensqueeze.errors import TableError
from tokensqueeze.metrics.by_problem import TraceT
from tokensqueeze.schema import Decoding, EvaluationTrace, ForcedTrace, Problem
from tokensqueeze.tables import Table, read_json

_RUN_MODELS = ("base", "squeezed")
_RUN_BENCHMARK = "test"


@dataclass(frozen=True)
class Evaluated:
    """One model on one benchmark; its tables are read when they are asked for."""

    model: str
    benchmark: str
    token_budget: int
    max_tokens: int | None
    """None, as the next two, for traces that were made elsewhere and nobody said how."""
    temperature: float | None
    top_p: float | None
    evaluation_table: Table[EvaluationTrace]
    forced_table: Table[ForcedTrace] | None
    problem_table: Table[Problem] | None
    origin: Mapping[str, str] = field(default_factory=dict)
    """Model, folder, tables and versions, for the reader."""

    @cached_property
    def problems(self) -> dict[str, Problem] | None:
        """By id; None where the folder names no table of problems."""
        return {row.problem_id: row for row in self.problem_table.rows()} if self.problem_table else None

    @cached_property
    def decodings(self) -> list[Decoding]:
        return [decoding for decoding in reversed(get_args(Decoding)) if self.traces(decoding)]

    @property
    def sampling(self) -> str:
        if self.temperature is None:
            return "sampling not known"
        return f"temperature {self.temperature:g}" + (f", top_p {self.top_p:g}" if self.top_p is not None else "")

    def traces(self, decoding: Decoding) -> list[EvaluationTrace]:
        return [trace for trace in self._traces if trace.decoding == decoding]

    def forced(self, decoding: Decoding) -> list[ForcedTrace]:
        return [trace for trace in self._forced if trace.decoding == decoding]

    def named(self, name: str) -> "Evaluated":
        return replace(self, model=name)

    @cached_property
    def _traces(self) -> list[EvaluationTrace]:
        traces = _slim_rows(self.evaluation_table)
        if not traces:
            raise TableError(f"{self.evaluation_table.path}: no traces; evaluate {self.model} on at least one problem")
        return traces

    @cached_property
    def _forced(self) -> list[ForcedTrace]:
        return _slim_rows(self.forced_table) if self.forced_table else []


def evaluated_in(argument: str) -> list[Evaluated]:
    """Return the models and benchmarks of `FOLDER`, `NAME=FOLDER` or, of a run, `FOLDER:base` or `FOLDER:squeezed`.

    Raises `TableError` for a folder without an evaluation, or with an unfinished one.
    """
    name, folder, picked = _argument(argument)
    run, evaluation = folder / "run.json", folder / "evaluation.json"
    if run.is_file():
        with _as_written(run):
            return _of_run(folder, name, picked)
    if not evaluation.is_file():
        what = (
            "no such folder"
            if not folder.is_dir()
            else "neither evaluation.json nor run.json in it, so no evaluation ended here"
        )
        raise TableError(f"{folder}: {what}; give a folder that `tokensqueeze evaluate` or `tokensqueeze run` has left")
    if picked:
        raise TableError(f"{argument}: {folder} holds one model; only the folder of a run has :base and :squeezed")
    with _as_written(evaluation):
        return _of_evaluation(folder, name)


def _argument(argument: str) -> tuple[str | None, Path, str | None]:
    """Split an argument; a path that exists is taken as it is, whatever signs it has."""
    if Path(argument).exists():
        return None, Path(argument), None
    name, equals, rest = argument.partition("=")
    if not equals or not name:
        name, rest = "", argument
    folder, colon, picked = rest.rpartition(":")
    if not Path(rest).exists() and colon and picked in _RUN_MODELS:
        return name or None, Path(folder), picked
    return name or None, Path(rest), None


def _of_run(folder: Path, name: str | None, picked: str | None) -> list[Evaluated]:
    run = _json(folder / "run.json", "settings", "tables")
    settings, tables = run["settings"]["evaluation"], run["tables"]
    models = [model for model in ([picked] if picked else _RUN_MODELS) if f"evaluation_{model}" in tables]
    if not models:
        raise TableError(
            f"{folder}: the run has evaluated {f'no {picked} model' if picked else 'nothing'}; set problems.test, and run "
            "without --until"
        )
    return [
        Evaluated(
            model=name if name and picked else f"{name or folder} {model}",
            benchmark=_RUN_BENCHMARK,
            evaluation_table=Table(folder / tables[f"evaluation_{model}"], EvaluationTrace),
            forced_table=None,
            problem_table=Table(folder / tables["problems_test"], Problem) if "problems_test" in tables else None,
            origin=_origin(
                folder,
                run["settings"]["model"]["path"] if model == "base" else str(folder / "model"),
                tables[f"evaluation_{model}"],
                run,
            ),
            **{key: settings[key] for key in ("token_budget", "max_tokens", "temperature", "top_p")},
        )
        for model in models
    ]


def _of_evaluation(folder: Path, name: str | None) -> list[Evaluated]:
    evaluation = _json(folder / "evaluation.json", "model", "benchmarks")
    found = []
    for benchmark, own in evaluation["benchmarks"].items():
        tables, decoding = own["tables"], own["decoding"]
        found.append(
            Evaluated(
                model=name or folder.absolute().name,
                benchmark=benchmark,
                token_budget=own["token_budget"],
                max_tokens=decoding["max_tokens"],
                temperature=decoding["temperature"],
                top_p=decoding["top_p"],
                evaluation_table=Table(folder / tables["evaluation"], EvaluationTrace),
                forced_table=Table(folder / tables["forced"], ForcedTrace) if tables.get("forced") else None,
                problem_table=Table(folder / tables["problems"], Problem),
                origin=_origin(folder, evaluation.get("model_path") or evaluation["model"], tables["evaluation"], evaluation),
            )
        )
    if not found:
        raise TableError(f"{folder}: evaluation.json has no benchmark; run `tokensqueeze evaluate` to its end")
    return found


def _origin(folder: Path, model: str, table: str, file: Mapping[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in file.get("versions", {}).items())
    return {"model": model, "folder": str(folder), "table": table, **({"versions": versions} if versions else {})}


def _json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a file and see that it is what its name says."""
    value = read_json(path)
    missing = [key for key in keys if key not in value]
    if missing:
        raise TableError(f"{path}: no {missing[0]!r} in it; it was not written by this version's evaluate or run")
    return value


@contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Turn what a file lacks, that somebody else wrote or changed, into one line."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise TableError(f"{path}: not as evaluate or run writes it ({error}); run that again") from error


def _slim_rows(table: Table[TraceT]) -> list[TraceT]:
    """Return all rows without texts and token ids: of many long traces, they would not fit into memory."""
    return [replace(row, text="", token_ids=[]) for shard in range(table.num_shards()) for row in table.read_part(shard)]
