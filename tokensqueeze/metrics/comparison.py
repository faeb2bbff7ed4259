"""Several models on the same problems: each against the first, and the problems that moved most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from statistics import fmean

from tokensqueeze.metrics.by_problem import TraceT, by_problem, is_correct
from tokensqueeze.metrics.evaluation import Change, change
from tokensqueeze.metrics.paired_tests import holm
from tokensqueeze.schema import EvaluationTrace


@dataclass(frozen=True)
class AgainstFirst:
    """One model against the first; `*_holm` are the p-values adjusted for as many models as there are."""

    change: Change
    accuracy_holm: float | None
    length_holm: float | None
    auc_holm: float | None


@dataclass(frozen=True)
class ProblemChange:
    """One problem under every model, first model first; lengths are mean tokens."""

    problem_id: str
    pass_rates: list[float]
    lengths: list[float]

    @property
    def largest(self) -> float:
        """The pass rate that is farthest from the first model's, less the first model's."""
        return max((rate - self.pass_rates[0] for rate in self.pass_rates[1:]), key=abs)


def against_first(models: Sequence[Sequence[EvaluationTrace]], token_budget: int) -> list[AgainstFirst]:
    """Compare every further model with the first. Raises `TableError` as `change` does."""
    changes = [change(models[0], other, token_budget) for other in models[1:]]
    adjusted = [
        holm([found.accuracy_p for found in changes]),
        holm([found.length_p for found in changes]),
        holm([found.auc_p for found in changes]),
    ]
    return [AgainstFirst(found, *ps) for found, *ps in zip(changes, *adjusted, strict=True)]


def largest_changes(models: Sequence[Sequence[EvaluationTrace]], most: int) -> list[ProblemChange]:
    """Return the problems whose pass rate moved most, largest move first; of equal moves, the larger change in length."""
    grouped = [by_problem(traces) for traces in models]
    changes = [
        ProblemChange(
            problem_id,
            [fmean(map(is_correct, problems[problem_id])) for problems in grouped],
            [fmean(trace.num_tokens for trace in problems[problem_id]) for problems in grouped],
        )
        for problem_id in grouped[0]
    ]
    moved = [one for one in changes if one.largest]
    return sorted(moved, key=lambda one: (-abs(one.largest), -_length_change(one), one.problem_id))[:most]


def cut_at(traces: Sequence[TraceT], max_tokens: int) -> list[TraceT]:
    """Return the traces as a lower token limit would have left them: one that is longer ends there, and is not correct."""
    return [trace if trace.num_tokens <= max_tokens else _cut(trace, max_tokens) for trace in traces]


def samples_per_problem(traces: Sequence[EvaluationTrace]) -> Mapping[str, int]:
    return {problem_id: len(own) for problem_id, own in by_problem(traces).items()}


def _cut(trace: TraceT, max_tokens: int) -> TraceT:
    thinking = min(trace.thinking_tokens, max_tokens)
    return replace(
        trace,
        num_tokens=max_tokens,
        finish_reason="length",
        verdict="incorrect",
        verdict_cause="truncated",
        extracted_answer=None,
        thinking_tokens=thinking,
        answer_tokens=max_tokens - thinking,
    )


def _length_change(one: ProblemChange) -> float:
    return max(abs(log(max(1, length)) - log(max(1, one.lengths[0]))) for length in one.lengths[1:])
