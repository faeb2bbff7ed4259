"""evaluation → forced evaluation: what each sampled trace would have come to under a server's thinking budget.

The traces that were drawn are the beginnings: a trace that still thinks at the budget is cut there, its thinking closed, and
the model goes on with the answer; any other stays as it is. So budgets differ in nothing but the budget.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from tokensqueeze.config import EvaluationSettings, ForcingSettings, VerifierSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.fingerprint import seed_of
from tokensqueeze.schema import EvaluationTrace, ForcedTrace, Problem, Trace, VerifiedTrace
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.stages.verify_traces import build_verifier, verdict_counts, with_verdicts
from tokensqueeze.traces.thinking_budget import cut_at_budget


class ForceBudgets:
    def __init__(
        self, source: ModelSource, forcing: ForcingSettings, evaluation: EvaluationSettings, verifier: VerifierSettings
    ):
        self._source, self._forcing, self._evaluation = source, forcing, evaluation
        self._verifier = build_verifier(source, verifier)
        self._engine = source.engine()

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[ForcedTrace]:
        problems: list[Problem] = inputs["problems"]
        drawn: list[EvaluationTrace] = inputs["evaluation"]
        # One decoding, so that a point of the curve is one thing: the sampled one, where there is any.
        traces = [trace for trace in drawn if trace.decoding == "sampled"] or drawn
        prompts = {problem.problem_id: problem.prompt_token_ids for problem in problems}
        rows: list[ForcedTrace] = []
        tokens = forced = 0
        for budget in self._forcing.thinking_budgets:
            cut = {trace.trace_id: self._cut(trace, budget) for trace in traces}
            kept = {trace_id: beginning for trace_id, beginning in cut.items() if beginning is not None}
            asked = [trace for trace in traces if trace.trace_id in kept]
            answered = self._answer(asked, kept, prompts, budget)
            forced += len(asked)
            tokens += sum(trace.num_tokens - len(kept[trace.trace_id]) for trace in answered)
            # What follows the forced close is the answer, even where the model falls to thinking again and closes it anew.
            thinking = [len(kept[trace.trace_id]) for trace in answered]
            judged = {trace.trace_id: trace for trace in with_verdicts(answered, thinking, problems, self._verifier)}
            rows += [_forced(trace, judged.get(trace.trace_id), budget) for trace in traces]
        return ShardResult(rows, tokens=tokens, counts={"forced": forced, **verdict_counts(rows)})

    @cached_property
    def _close_ids(self) -> list[int]:
        return self._source.tokens.encode(self._forcing.close_text.format(think_end=self._source.think_end))

    def _cut(self, trace: EvaluationTrace, budget: int) -> list[int] | None:
        """Return the trace's tokens up to its forced close, or nothing if it needs none."""
        kept = cut_at_budget(self._source.tokens.each(trace.token_ids), self._source.think_end, budget)
        return None if kept is None else [*trace.token_ids[:kept], *self._close_ids]

    def _answer(
        self,
        traces: list[EvaluationTrace],
        beginnings: Mapping[str, list[int]],
        prompts: Mapping[str, list[int]],
        budget: int,
    ) -> list[Trace]:
        """Go on behind the beginnings; one that fills the model's context has no answer."""
        contexts = {trace.trace_id: [*prompts[trace.problem_id], *beginnings[trace.trace_id]] for trace in traces}
        fitting = [trace for trace in traces if len(contexts[trace.trace_id]) < self._source.context_length]
        generations = self._engine.generate(
            [
                GenerationRequest(
                    prompt_token_ids=contexts[trace.trace_id],
                    max_tokens=self._forcing.answer_tokens,
                    temperature=0.0 if trace.decoding == "greedy" else self._evaluation.temperature,
                    top_p=1.0 if trace.decoding == "greedy" else self._evaluation.top_p,
                    seed=seed_of("force", self._evaluation.seed, trace.problem_id, trace.sample_index, budget),
                )
                for trace in fitting
            ]
        )
        answers = {trace.trace_id: generation for trace, generation in zip(fitting, generations, strict=True)}
        ended = []
        for trace in traces:
            answer = answers.get(trace.trace_id)
            ended.append(
                self._source.trace(
                    trace.problem_id,
                    trace.sample_index,
                    [*beginnings[trace.trace_id], *(answer.token_ids if answer else [])],
                    answer.finish_reason if answer else "length",
                    greedy=trace.decoding == "greedy",
                )
            )
        return ended


def _forced(trace: EvaluationTrace, forced: VerifiedTrace | None, budget: int) -> ForcedTrace:
    own = trace if forced is None else EvaluationTrace(**asdict(forced), decoding=trace.decoding)
    unique = replace(own, trace_id=f"{trace.trace_id}/{budget}")
    return ForcedTrace(**asdict(unique), thinking_budget=budget, was_forced=forced is not None)
