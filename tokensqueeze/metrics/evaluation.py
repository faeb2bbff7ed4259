"""What an evaluation says of one model, and of two models on the same problems.

Every problem weighs the same, however many samples it has. Lengths are in tokens of the model's own tokenizer,
accuracies, shares and areas between 0 and 1; `*_se` are standard errors clustered by problem, None where there are too
few problems. A sample that could not be verified is not correct, and its share is reported.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, get_args

from tokensqueeze.errors import TableError
from tokensqueeze.metrics.intervals import Estimate, clustered_mean, clustered_ratio
from tokensqueeze.metrics.token_budget import sample_auc
from tokensqueeze.schema import Decoding, EvaluationTrace


@dataclass(frozen=True)
class Cell:
    """One model under one decoding."""

    accuracy: float
    accuracy_se: float | None
    length_all: float
    """Len-A of the paper: reasoning and answer of every sample."""
    length_all_se: float | None
    length_correct: float | None
    """Len-T of the paper: of the correct samples; None when there is none. AUC = accuracy·(1 − length_correct/B)."""
    length_correct_se: float | None
    thinking_length: float
    thinking_length_se: float | None
    answer_length: float
    answer_length_se: float | None
    auc: float
    auc_se: float | None
    truncated: float
    """Share of the samples that hit the token limit."""
    unverifiable: float
    """Share of the samples that the verifier could not judge."""
    num_problems: int
    num_samples: int
    """Traces, over all problems."""


@dataclass(frozen=True)
class Change:
    """Squeezed against base, paired by problem."""

    accuracy: float
    """Difference, squeezed − base."""
    accuracy_se: float | None
    length_ratio: float
    """`length_all` of squeezed / of base."""
    length_ratio_se: float | None
    auc: float
    """Difference, squeezed − base."""
    auc_se: float | None
    num_problems: int


def measure(traces: Sequence[EvaluationTrace], token_budget: int) -> Cell:
    """Measure one model's traces, all of one decoding. Raises `TableError` for no traces."""
    by_problem = _by_problem(traces)

    def mean(measured: Callable[[EvaluationTrace], float]) -> Estimate:
        return clustered_mean(_problem_means(by_problem, measured))

    accuracy, length_all, area = mean(is_correct), mean(_length), mean(lambda trace: _area(trace, token_budget))
    thinking, answer = mean(lambda trace: trace.thinking_tokens), mean(lambda trace: trace.answer_tokens)
    length_correct = clustered_ratio(
        _problem_means(by_problem, lambda trace: trace.num_tokens * is_correct(trace)),
        _problem_means(by_problem, is_correct),
    )
    return Cell(
        accuracy=accuracy.value,
        accuracy_se=accuracy.standard_error,
        length_all=length_all.value,
        length_all_se=length_all.standard_error,
        length_correct=length_correct.value if length_correct else None,
        length_correct_se=length_correct.standard_error if length_correct else None,
        thinking_length=thinking.value,
        thinking_length_se=thinking.standard_error,
        answer_length=answer.value,
        answer_length_se=answer.standard_error,
        auc=area.value,
        auc_se=area.standard_error,
        truncated=mean(lambda trace: trace.finish_reason == "length").value,
        unverifiable=mean(lambda trace: trace.verdict == "unverifiable").value,
        num_problems=len(by_problem),
        num_samples=len(traces),
    )


def change(base: Sequence[EvaluationTrace], squeezed: Sequence[EvaluationTrace], token_budget: int) -> Change:
    """Compare two models on the same problems, under one decoding.

    Raises `TableError` where the problems differ, there are none, or the base model wrote nothing at all.
    """
    base_problems, squeezed_problems = _by_problem(base), _by_problem(squeezed)
    _check_same_problems(base_problems, squeezed_problems)
    # Pairs by problem: the two mappings may have met the problems in different orders.
    squeezed_problems = {problem_id: squeezed_problems[problem_id] for problem_id in base_problems}

    def difference(measured: Callable[[EvaluationTrace], float]) -> Estimate:
        before, after = _problem_means(base_problems, measured), _problem_means(squeezed_problems, measured)
        return clustered_mean([y - x for x, y in zip(before, after, strict=True)])

    ratio = clustered_ratio(_problem_means(squeezed_problems, _length), _problem_means(base_problems, _length))
    if ratio is None:
        raise TableError("every trace of the base model has 0 tokens, so no length ratio; look at the base traces")
    accuracy, area = difference(is_correct), difference(lambda trace: _area(trace, token_budget))
    return Change(
        accuracy=accuracy.value,
        accuracy_se=accuracy.standard_error,
        length_ratio=ratio.value,
        length_ratio_se=ratio.standard_error,
        auc=area.value,
        auc_se=area.standard_error,
        num_problems=len(base_problems),
    )


def evaluation_json(base: Sequence[EvaluationTrace], squeezed: Sequence[EvaluationTrace], token_budget: int) -> dict[str, Any]:
    """Return the cells of both models and their change, each by decoding: ready for JSON, null where nothing is known.

    A decoding that neither model was evaluated under is left out. Raises `TableError` as `change` does.
    """
    decodings = [decoding for decoding in get_args(Decoding) if any(trace.decoding == decoding for trace in [*base, *squeezed])]
    _check_traces([*base, *squeezed])
    before = {decoding: [trace for trace in base if trace.decoding == decoding] for decoding in decodings}
    after = {decoding: [trace for trace in squeezed if trace.decoding == decoding] for decoding in decodings}
    return {
        "token_budget": token_budget,
        "base": {decoding: asdict(measure(before[decoding], token_budget)) for decoding in decodings},
        "squeezed": {decoding: asdict(measure(after[decoding], token_budget)) for decoding in decodings},
        "change": {decoding: asdict(change(before[decoding], after[decoding], token_budget)) for decoding in decodings},
    }


def is_correct(trace: EvaluationTrace) -> bool:
    return trace.verdict == "correct"


def _length(trace: EvaluationTrace) -> int:
    return trace.num_tokens


def _area(trace: EvaluationTrace, token_budget: int) -> float:
    return sample_auc(is_correct(trace), trace.num_tokens, token_budget)


def _by_problem(traces: Sequence[EvaluationTrace]) -> Mapping[str, Sequence[EvaluationTrace]]:
    _check_traces(traces)
    by_problem = defaultdict[str, list[EvaluationTrace]](list)
    for trace in traces:
        by_problem[trace.problem_id].append(trace)
    return by_problem


def _problem_means(
    by_problem: Mapping[str, Sequence[EvaluationTrace]], measured: Callable[[EvaluationTrace], float]
) -> list[float]:
    return [fmean(measured(trace) for trace in traces) for traces in by_problem.values()]


def _check_traces(traces: Sequence[EvaluationTrace]) -> None:
    if not traces:
        raise TableError("no evaluation traces to measure; the evaluation needs at least one problem with one sample")


def _check_same_problems(base: Mapping[str, object], squeezed: Mapping[str, object]) -> None:
    for name, missing in (("base", squeezed.keys() - base.keys()), ("squeezed", base.keys() - squeezed.keys())):
        if missing:
            raise TableError(
                f"the {name} model has no traces of {len(missing)} of the problems, the first {min(missing)!r}; a "
                "paired change needs the same problems, so evaluate both models on the same file"
            )
