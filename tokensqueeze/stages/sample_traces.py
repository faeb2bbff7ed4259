"""problems → traces: N samples per problem from the model itself (METHOD, self-sampling)."""

from collections.abc import Mapping
from typing import Any

from tokensqueeze.config import SamplingSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.fingerprint import seed_of
from tokensqueeze.schema import Problem, Trace
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult


class SampleTraces:
    def __init__(self, source: ModelSource, sampling: SamplingSettings):
        self._source, self._sampling = source, sampling
        self._engine = source.engine()

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[Trace]:
        problems: list[Problem] = inputs["problems"]
        draws = [(problem, index) for problem in problems for index in range(self._sampling.num_samples)]
        generations = self._engine.generate([self._request(problem, index) for problem, index in draws])
        traces = [
            self._source.trace(problem.problem_id, index, generation.token_ids, generation.finish_reason)
            for (problem, index), generation in zip(draws, generations, strict=True)
        ]
        return ShardResult(traces, tokens=sum(trace.num_tokens for trace in traces))

    def _request(self, problem: Problem, index: int) -> GenerationRequest:
        return GenerationRequest(
            prompt_token_ids=problem.prompt_token_ids,
            max_tokens=self._sampling.max_tokens,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            seed=seed_of("sample", self._sampling.seed, problem.problem_id, index),
        )
