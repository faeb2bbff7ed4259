"""problems_test → evaluation: greedy and sampled traces of held-out problems, with their verdicts (METHOD, evaluation)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tokensqueeze.config import EvaluationSettings, VerifierSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.fingerprint import seed_of
from tokensqueeze.schema import Decoding, EvaluationTrace, Problem
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.stages.verify_traces import build_verifier, judge_traces, verdict_counts


class EvaluateModel:
    def __init__(self, source: ModelSource, evaluation: EvaluationSettings, verifier: VerifierSettings):
        self._source, self._evaluation = source, evaluation
        self._verifier = build_verifier(source, verifier)
        self._engine = source.engine()

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[EvaluationTrace]:
        problems: list[Problem] = inputs["problems"]
        draws: list[tuple[Problem, Decoding, int]] = []
        if self._evaluation.greedy:
            draws.extend((problem, "greedy", 0) for problem in problems)
        draws.extend((problem, "sampled", i) for problem in problems for i in range(self._evaluation.num_samples))
        generations = self._engine.generate([self._request(*draw) for draw in draws])
        traces = [
            self._source.trace(
                problem.problem_id, index, generation.token_ids, generation.finish_reason, greedy=decoding == "greedy"
            )
            for (problem, decoding, index), generation in zip(draws, generations, strict=True)
        ]
        verified = judge_traces(traces, problems, self._source, self._verifier)
        rows = [
            EvaluationTrace(**asdict(trace), decoding=decoding) for trace, (_, decoding, _) in zip(verified, draws, strict=True)
        ]
        return ShardResult(rows, tokens=sum(row.num_tokens for row in rows), counts=verdict_counts(verified))

    def _request(self, problem: Problem, decoding: Decoding, index: int) -> GenerationRequest:
        greedy = decoding == "greedy"
        return GenerationRequest(
            prompt_token_ids=problem.prompt_token_ids,
            max_tokens=self._evaluation.max_tokens,
            temperature=0.0 if greedy else self._evaluation.temperature,
            top_p=1.0 if greedy else self._evaluation.top_p,
            # Base and squeezed model draw from the same random streams, which makes their difference less noisy.
            seed=seed_of("evaluate", self._evaluation.seed, problem.problem_id, index),
        )
