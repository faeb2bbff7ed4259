"""problems → evaluation, of a model behind an OpenAI-compatible server: its traces, verdicts and lengths.

A completion's tokens are counted by the server, or by the model's own tokenizer, never guessed from characters.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokensqueeze.config import EndpointSettings, EvaluationSettings, VerifierSettings
from tokensqueeze.engines.checkpoint import load_tokenizer
from tokensqueeze.engines.endpoint import EndpointClient, EndpointCompletion
from tokensqueeze.errors import EngineError
from tokensqueeze.schema import EvaluationTrace, Problem, Trace
from tokensqueeze.stages.evaluate_model import Draw, draws_of
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.stages.verify_traces import verdict_counts, with_verdicts
from tokensqueeze.traces.token_texts import TokenTexts
from tokensqueeze.verifiers.answers import AnswerVerifier

_PLAIN_ENDS = ("stop", "length")


class EvaluateEndpoint:
    def __init__(
        self,
        endpoint: EndpointSettings,
        model: str,
        api_key: str | None,
        think_end: str,
        evaluation: EvaluationSettings,
        verifier: VerifierSettings,
    ):
        self._endpoint, self._think_end, self._evaluation = endpoint, think_end, evaluation
        self._client = EndpointClient(endpoint, model, api_key)
        self._verifier = AnswerVerifier(verifier, think_end=think_end)

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[EvaluationTrace]:
        problems: list[Problem] = inputs["problems"]
        draws = draws_of(problems, self._evaluation)
        with ThreadPoolExecutor(self._endpoint.concurrency) as threads:
            completions = list(threads.map(self._complete, draws))
        traces = [self._trace(draw, completion) for draw, completion in zip(draws, completions, strict=True)]
        thinking = [
            self._thinking_tokens(completion, trace.num_tokens) for completion, trace in zip(completions, traces, strict=True)
        ]
        verified = with_verdicts(traces, thinking, problems, self._verifier)
        rows = []
        for draw, completion, trace in zip(draws, completions, verified, strict=True):
            if completion.finish_reason not in _PLAIN_ENDS:
                # A content filter or a tool call is no answer to judge.
                trace = replace(trace, verdict="unverifiable", verdict_cause=f"finish_reason: {completion.finish_reason}")
            rows.append(EvaluationTrace(**asdict(trace), decoding=draw.decoding))
        return ShardResult(rows, tokens=sum(row.num_tokens for row in rows), counts=verdict_counts(rows))

    def _complete(self, draw: Draw) -> EndpointCompletion:
        return self._client.complete(
            draw.problem.prompt,
            max_tokens=self._evaluation.max_tokens,
            temperature=draw.temperature,
            top_p=draw.top_p,
            seed=draw.seed,
        )

    def _trace(self, draw: Draw, completion: EndpointCompletion) -> Trace:
        text = self._text(completion)
        problem_id = draw.problem.problem_id
        return Trace(
            trace_id=f"{problem_id}/{'greedy' if draw.decoding == 'greedy' else draw.index}",
            problem_id=problem_id,
            sample_index=draw.index,
            text=text,
            token_ids=[],
            num_tokens=self._num_tokens(completion, text),
            finish_reason="length" if completion.finish_reason == "length" else "stop",
        )

    def _num_tokens(self, completion: EndpointCompletion, text: str) -> int:
        if completion.num_tokens is not None:
            return completion.num_tokens
        # The token that ends a completion is one of it, as servers and engines count.
        return self._count(text) + (completion.finish_reason != "length")

    def _text(self, completion: EndpointCompletion) -> str:
        if completion.reasoning is None:
            return completion.content
        thinking_is_open = completion.finish_reason == "length" and not completion.content
        return f"{completion.reasoning}{'' if thinking_is_open else self._think_end}{completion.content}"

    def _thinking_tokens(self, completion: EndpointCompletion, num_tokens: int) -> int:
        """Return how many of the tokens are thinking. Without an end of it, a completion that was cut off is all thinking, and
        one that ended by itself is an answer alone: the server, not the prompt, opens the thinking."""
        text = self._text(completion)
        if self._think_end not in text:
            return num_tokens if completion.finish_reason == "length" or completion.reasoning is not None else 0
        # Servers that don't count it say 0.
        if completion.reasoning_tokens and completion.reasoning is not None:
            return min(completion.reasoning_tokens, num_tokens)
        answer = text.rpartition(self._think_end)[2]
        return max(0, num_tokens - self._count(answer)) if answer else num_tokens

    def _count(self, text: str) -> int:
        if self._tokens is None:
            raise EngineError(
                f"endpoint.url: {self._endpoint.url}: its `usage` does not tell how many tokens there are, or which "
                "of them are reasoning; name the model's own tokenizer with endpoint.tokenizer (a directory)"
            )
        return len(self._tokens.encode(text))

    @cached_property
    def _tokens(self) -> TokenTexts | None:
        folder = self._endpoint.tokenizer
        return TokenTexts(load_tokenizer(Path(folder)), frozenset()) if folder else None
