"""What an evaluation says of one model, and of two models on the same problems.

Every problem weighs the same, however many samples it has. Lengths are in tokens of the model's own tokenizer,
accuracies, shares and areas between 0 and 1. `*_se` are standard errors clustered by problem, `*_ci` 95 % intervals
[low, high] of a bootstrap over problems, `*_p` p-values of a test paired by problem; each None where the problems are too
few or too alike to tell. A sample that could not be verified is not correct, and its share is reported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from tokensqueeze.errors import TableError
from tokensqueeze.metrics.bootstrap import mean_interval, percentile_interval, ratio, ratio_interval, resampled_means
from tokensqueeze.metrics.by_problem import by_problem, check_traces, is_correct, problem_means
from tokensqueeze.metrics.intervals import clustered_mean, clustered_ratio
from tokensqueeze.metrics.paired_tests import sign_flip_p
from tokensqueeze.metrics.pass_at_k import measurable_k, pass_at_k
from tokensqueeze.metrics.token_budget import sample_auc
from tokensqueeze.schema import Decoding, EvaluationTrace


@dataclass(frozen=True)
class PassAtK:
    """The chance that at least one of k samples is right."""

    value: float
    ci: list[float] | None


@dataclass(frozen=True)
class Cell:
    """One model under one decoding."""

    accuracy: float
    accuracy_se: float | None
    accuracy_ci: list[float] | None
    length_all: float
    """Len-A of the paper: reasoning and answer of every sample."""
    length_all_se: float | None
    length_all_ci: list[float] | None
    length_correct: float | None
    """Len-T of the paper: of the correct samples; None when there is none. AUC = accuracy·(1 − length_correct/B)."""
    length_correct_se: float | None
    length_correct_ci: list[float] | None
    thinking_length: float
    thinking_length_se: float | None
    thinking_length_ci: list[float] | None
    answer_length: float
    answer_length_se: float | None
    answer_length_ci: list[float] | None
    auc: float
    auc_se: float | None
    auc_ci: list[float] | None
    pass_at_k: dict[str, PassAtK]
    """By k = 1, 2, 4, 8, … up to what the problem with the fewest samples has; the keys are text, as JSON wants them."""
    truncated: float
    """Share of the samples that hit the token limit."""
    truncated_ci: list[float] | None
    unverifiable: float
    """Share of the samples that the verifier could not judge."""
    num_problems: int
    num_samples: int
    """Traces, over all problems."""


@dataclass(frozen=True)
class Change:
    """A second model (squeezed) against a first (base), paired by problem."""

    accuracy: float
    """Difference, squeezed − base."""
    accuracy_se: float | None
    accuracy_ci: list[float] | None
    accuracy_p: float | None
    length_ratio: float
    """`length_all` of squeezed / of base."""
    length_ratio_se: float | None
    length_ratio_ci: list[float] | None
    length_p: float | None
    """Of the differences in tokens: whether `length_ratio` is 1."""
    auc: float
    """Difference, squeezed − base."""
    auc_se: float | None
    auc_ci: list[float] | None
    auc_p: float | None
    num_problems: int


def measure(traces: Sequence[EvaluationTrace], token_budget: int) -> Cell:
    """Measure one model's traces, all of one decoding. Raises `TableError` for no traces."""
    problems = by_problem(traces)
    measured: dict[str, Callable[[EvaluationTrace], float]] = {
        "accuracy": is_correct,
        "length_all": _length,
        "thinking_length": lambda trace: trace.thinking_tokens,
        "answer_length": lambda trace: trace.answer_tokens,
        "auc": lambda trace: _area(trace, token_budget),
        "truncated": lambda trace: trace.finish_reason == "length",
        "correct_tokens": lambda trace: trace.num_tokens * is_correct(trace),
    }
    values = {name: problem_means(problems, figure) for name, figure in measured.items()}
    some_right = {str(k): _passes(problems, k) for k in measurable_k(min(map(len, problems.values())))}
    # One call, so that all figures are resampled by the same draws.
    means_RF = resampled_means([*values.values(), *some_right.values()])
    resampled = dict(zip([*values, *(f"pass@{k}" for k in some_right)], means_RF.T, strict=True))
    intervals = {name: percentile_interval(column) for name, column in resampled.items()}

    means = {name: clustered_mean(own) for name, own in values.items()}
    length_correct = clustered_ratio(values["correct_tokens"], values["accuracy"])
    return Cell(
        accuracy=means["accuracy"].value,
        accuracy_se=means["accuracy"].standard_error,
        accuracy_ci=intervals["accuracy"],
        length_all=means["length_all"].value,
        length_all_se=means["length_all"].standard_error,
        length_all_ci=intervals["length_all"],
        length_correct=length_correct.value if length_correct else None,
        length_correct_se=length_correct.standard_error if length_correct else None,
        length_correct_ci=percentile_interval(ratio(resampled["correct_tokens"], resampled["accuracy"])),
        thinking_length=means["thinking_length"].value,
        thinking_length_se=means["thinking_length"].standard_error,
        thinking_length_ci=intervals["thinking_length"],
        answer_length=means["answer_length"].value,
        answer_length_se=means["answer_length"].standard_error,
        answer_length_ci=intervals["answer_length"],
        auc=means["auc"].value,
        auc_se=means["auc"].standard_error,
        auc_ci=intervals["auc"],
        pass_at_k={k: PassAtK(clustered_mean(own).value, intervals[f"pass@{k}"]) for k, own in some_right.items()},
        truncated=means["truncated"].value,
        truncated_ci=intervals["truncated"],
        unverifiable=clustered_mean(problem_means(problems, lambda trace: trace.verdict == "unverifiable")).value,
        num_problems=len(problems),
        num_samples=len(traces),
    )


def change(base: Sequence[EvaluationTrace], squeezed: Sequence[EvaluationTrace], token_budget: int) -> Change:
    """Compare two models on the same problems, under one decoding.

    Raises `TableError` where the problems differ, there are none, or the base model wrote nothing at all.
    """
    before, after = by_problem(base), by_problem(squeezed)
    _check_same_problems(before, after)

    def differences(measured: Callable[[EvaluationTrace], float]) -> list[float]:
        pairs = zip(problem_means(before, measured), problem_means(after, measured), strict=True)
        return [y - x for x, y in pairs]

    lengths_before, lengths_after = problem_means(before, _length), problem_means(after, _length)
    length_ratio = clustered_ratio(lengths_after, lengths_before)
    if length_ratio is None:
        raise TableError("every trace of the base model has 0 tokens, so no length ratio; look at the base traces")
    gains, areas = differences(is_correct), differences(lambda trace: _area(trace, token_budget))
    accuracy, auc = clustered_mean(gains), clustered_mean(areas)
    return Change(
        accuracy=accuracy.value,
        accuracy_se=accuracy.standard_error,
        accuracy_ci=mean_interval(gains),
        accuracy_p=sign_flip_p(gains),
        length_ratio=length_ratio.value,
        length_ratio_se=length_ratio.standard_error,
        length_ratio_ci=ratio_interval(lengths_after, lengths_before),
        length_p=sign_flip_p(differences(_length)),
        auc=auc.value,
        auc_se=auc.standard_error,
        auc_ci=mean_interval(areas),
        auc_p=sign_flip_p(areas),
        num_problems=len(before),
    )


def evaluation_json(base: Sequence[EvaluationTrace], squeezed: Sequence[EvaluationTrace], token_budget: int) -> dict[str, Any]:
    """Return the cells of both models and their change, each by decoding: ready for JSON, null where nothing is known.

    A decoding that neither model was evaluated under is left out. Raises `TableError` as `change` does.
    """
    decodings = [decoding for decoding in get_args(Decoding) if any(trace.decoding == decoding for trace in [*base, *squeezed])]
    check_traces([*base, *squeezed])
    before = {decoding: [trace for trace in base if trace.decoding == decoding] for decoding in decodings}
    after = {decoding: [trace for trace in squeezed if trace.decoding == decoding] for decoding in decodings}
    return {
        "token_budget": token_budget,
        "base": {decoding: asdict(measure(before[decoding], token_budget)) for decoding in decodings},
        "squeezed": {decoding: asdict(measure(after[decoding], token_budget)) for decoding in decodings},
        "change": {decoding: asdict(change(before[decoding], after[decoding], token_budget)) for decoding in decodings},
    }


def _length(trace: EvaluationTrace) -> int:
    return trace.num_tokens


def _area(trace: EvaluationTrace, token_budget: int) -> float:
    return sample_auc(is_correct(trace), trace.num_tokens, token_budget)


def _passes(problems: Mapping[str, Sequence[EvaluationTrace]], k: int) -> list[float]:
    return [pass_at_k(len(traces), sum(map(is_correct, traces)), k) for traces in problems.values()]


def _check_same_problems(base: Mapping[str, object], squeezed: Mapping[str, object]) -> None:
    for name, missing in (("base", squeezed.keys() - base.keys()), ("squeezed", base.keys() - squeezed.keys())):
        if missing:
            raise TableError(
                f"the {name} model has no traces of {len(missing)} of the problems, the first {min(missing)!r}; a "
                "paired change needs the same problems, so evaluate both models on the same file"
            )
