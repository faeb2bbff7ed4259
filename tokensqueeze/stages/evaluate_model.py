"""problems_test → evaluation: greedy and sampled traces of held-out problems, with their verdicts (METHOD, evaluation)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
        draws = draws_of(problems, self._evaluation)
        generations = self._engine.generate([self._request(draw) for draw in draws])
        traces = [
            self._source.trace(
                draw.problem.problem_id,
                draw.index,
                generation.token_ids,
                generation.finish_reason,
                greedy=draw.decoding == "greedy",
            )
            for draw, generation in zip(draws, generations, strict=True)
        ]
        verified = judge_traces(traces, problems, self._source, self._verifier)
        rows = [EvaluationTrace(**asdict(trace), decoding=draw.decoding) for trace, draw in zip(verified, draws, strict=True)]
        return ShardResult(rows, tokens=sum(row.num_tokens for row in rows), counts=verdict_counts(verified))

    def _request(self, draw: "Draw") -> GenerationRequest:
        return GenerationRequest(
            prompt_token_ids=draw.problem.prompt_token_ids,
            max_tokens=self._evaluation.max_tokens,
            temperature=draw.temperature,
            top_p=draw.top_p,
            seed=draw.seed,
        )


@dataclass(frozen=True)
class Draw:
    """One trace that an evaluation asks for."""

    problem: Problem
    decoding: Decoding
    index: int
    temperature: float
    top_p: float
    seed: int
    """Two models draw from the same random streams, which makes their difference less noisy."""


def draws_of(problems: Sequence[Problem], evaluation: EvaluationSettings) -> list[Draw]:
    """Return every trace that an evaluation draws of these problems: the greedy ones, then the sampled ones."""

    def draw(problem: Problem, decoding: Decoding, index: int) -> Draw:
        greedy = decoding == "greedy"
        return Draw(
            problem,
            decoding,
            index,
            temperature=0.0 if greedy else evaluation.temperature,
            top_p=1.0 if greedy else evaluation.top_p,
            seed=seed_of("evaluate", evaluation.seed, problem.problem_id, index),
        )

    greedy = [draw(problem, "greedy", 0) for problem in problems if evaluation.greedy]
    return greedy + [draw(problem, "sampled", i) for problem in problems for i in range(evaluation.num_samples)]
