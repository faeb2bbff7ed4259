"""Traces grouped by problem, the unit of chance: in the order of the ids, so that equal data give equal numbers."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from tokensqueeze.errors import TableError
from tokensqueeze.schema import VerifiedTrace

TraceT = TypeVar("TraceT", bound=VerifiedTrace)


def by_problem(traces: Sequence[TraceT]) -> dict[str, list[TraceT]]:
    """Return each problem's traces. Raises `TableError` for no traces."""
    check_traces(traces)
    grouped = defaultdict[str, list[TraceT]](list)
    for trace in traces:
        grouped[trace.problem_id].append(trace)
    return {problem_id: grouped[problem_id] for problem_id in sorted(grouped)}


def problem_means(problems: Mapping[str, Sequence[TraceT]], measured: Callable[[TraceT], float]) -> list[float]:
    """Return the mean over each problem's traces."""
    return [fmean(measured(trace) for trace in traces) for traces in problems.values()]


def is_correct(trace: VerifiedTrace) -> bool:
    return trace.verdict == "correct"


def check_traces(traces: Sequence[object]) -> None:
    if not traces:
        raise TableError("no evaluation traces to measure; the evaluation needs at least one problem with one sample")
