"""traces → verified_traces: a verdict for every trace, and how much of it was thinking."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tokensqueeze.config import VerifierSettings
from tokensqueeze.schema import Problem, Trace, VerifiedTrace
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.verifiers.answers import AnswerVerifier
from tokensqueeze.verifiers.verdict import Answered


class VerifyTraces:
    def __init__(self, source: ModelSource, settings: VerifierSettings):
        self._source = source
        self._verifier = build_verifier(source, settings)

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[VerifiedTrace]:
        verified = judge_traces(inputs["traces"], inputs["problems"], self._source, self._verifier)
        return ShardResult(verified, counts=verdict_counts(verified))


def build_verifier(source: ModelSource, settings: VerifierSettings) -> AnswerVerifier:
    """Return a verifier for a worker's lifetime: its child processes take a second to start."""
    return AnswerVerifier(settings, think_end=source.think_end)


def judge_traces(
    traces: Sequence[Trace], problems: Sequence[Problem], source: ModelSource, verifier: AnswerVerifier
) -> list[VerifiedTrace]:
    """Return the traces with their verdicts, in order."""
    return with_verdicts(traces, [source.thinking_tokens(trace.token_ids) for trace in traces], problems, verifier)


def with_verdicts(
    traces: Sequence[Trace], thinking_tokens: Sequence[int], problems: Sequence[Problem], verifier: AnswerVerifier
) -> list[VerifiedTrace]:
    """Return the traces, of which so many tokens each are thinking, with their verdicts, in order."""
    problem_of = {problem.problem_id: problem for problem in problems}
    answered = [
        Answered(
            text=trace.text,
            gold_answer=problem_of[trace.problem_id].gold_answer,
            finish_reason=trace.finish_reason,
            answer_kind=problem_of[trace.problem_id].answer_kind,
        )
        for trace in traces
    ]
    return [
        VerifiedTrace(
            **asdict(trace),
            verdict=judgement.verdict,
            extracted_answer=judgement.extracted_answer,
            verdict_cause=judgement.cause,
            thinking_tokens=thinking,
            answer_tokens=trace.num_tokens - thinking,
            isolation=judgement.isolation,
        )
        for trace, thinking, judgement in zip(traces, thinking_tokens, verifier.judge(answered), strict=True)
    ]


def verdict_counts(traces: Iterable[VerifiedTrace]) -> dict[str, float]:
    """Count verdicts, and the causes of those that are not plain."""
    counts: Counter[str] = Counter()
    for trace in traces:
        counts[trace.verdict] += 1
        if trace.verdict_cause:
            # Which of a program's tests failed is the row's to tell.
            cause, _, _ = trace.verdict_cause.partition(": test")
            counts[f"{trace.verdict}: {cause}"] += 1
    return dict(counts)
