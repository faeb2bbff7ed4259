"""selected_traces → step_candidates: K draws for every step, all given the original prefix (paper section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokensqueeze.config import NoRewrite, Reliable, RewriterSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.fingerprint import seed_of
from tokensqueeze.rewriters.step_candidates import distinct_candidates, draw_length, ending_tokens, stop_texts
from tokensqueeze.schema import Problem, SelectedTrace, StepCandidates
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.traces.anatomy import Span, step_spans
from tokensqueeze.traces.corrections import corrected_units


@dataclass(frozen=True)
class _Step:
    trace: SelectedTrace
    index: int
    num_steps: int
    span: Span
    num_draws: int


class ProposeSteps:
    def __init__(self, source: ModelSource, rewriter: RewriterSettings):
        self._source, self._rewriter = source, rewriter
        self._engine = None if isinstance(rewriter, NoRewrite) else source.engine()
        self._ending_tokens = ending_tokens(source.think_end, source.tokens)

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[StepCandidates]:
        if self._engine is None or isinstance(self._rewriter, NoRewrite):
            return ShardResult([])
        prompts = {problem.problem_id: problem for problem in inputs["problems"]}
        steps = [step for trace in inputs["selected_traces"] for step in self._steps(trace)]
        requests = [request for step in steps for request in self._requests(prompts[step.trace.problem_id], step)]
        draws = iter(self._engine.generate(requests))
        rows, tokens = [], 0
        for step in steps:
            own = [next(draws) for _ in range(step.num_draws)]
            generated = sum(len(draw.token_ids) for draw in own)
            tokens += generated
            step_text = self._source.tokens.text(step.trace.token_ids[step.span.start : step.span.end])
            rows.append(
                StepCandidates(
                    trace_id=step.trace.trace_id,
                    problem_id=step.trace.problem_id,
                    step_index=step.index,
                    num_steps=step.num_steps,
                    token_start=step.span.start,
                    token_end=step.span.end,
                    step_text=step_text,
                    candidates=distinct_candidates(
                        own,
                        step_text=step_text,
                        think_end=self._source.think_end,
                        max_tokens=None if isinstance(self._rewriter, Reliable) else len(step.span) - 1,
                        tokens=self._source.tokens,
                    ),
                    tokens_generated=generated,
                )
            )
        return ShardResult(rows, tokens=tokens, counts={"draws": len(requests)})

    def _steps(self, trace: SelectedTrace) -> list[_Step]:
        assert not isinstance(self._rewriter, NoRewrite)
        spans = self._spans(trace)
        drawn = [draw_length(self._rewriter, len(span), self._ending_tokens) > 0 for span in spans]
        count = self._rewriter.num_candidates
        return [_Step(trace, i, len(spans), span, count if drawn[i] else 0) for i, span in enumerate(spans)]

    def _spans(self, trace: SelectedTrace) -> list[Span]:
        """Return what is rewritten as one: steps, or where the settings say so a step together with what corrects it."""
        spans = step_spans(self._source.tokens.each(trace.token_ids), self._source.think_end)
        if not isinstance(self._rewriter, Reliable) or self._rewriter.unit == "step":
            return spans
        texts = [self._source.tokens.text(trace.token_ids[span.start : span.end]) for span in spans]
        return [Span(spans[unit[0]].start, spans[unit[-1]].end) for unit in corrected_units(texts)]

    def _requests(self, problem: Problem, step: _Step) -> list[GenerationRequest]:
        assert not isinstance(self._rewriter, NoRewrite)
        # One prompt for all draws: copies of every step's prefix would take more memory than all else here.
        prompt = (*problem.prompt_token_ids, *step.trace.token_ids[: step.span.start]) if step.num_draws else ()
        return [
            GenerationRequest(
                prompt_token_ids=prompt,
                max_tokens=draw_length(self._rewriter, len(step.span), self._ending_tokens),
                temperature=self._rewriter.temperature,
                top_p=1.0,
                seed=seed_of("step", self._rewriter.seed, step.trace.trace_id, step.index, draw),
                stop_texts=stop_texts(self._source.think_end),
            )
            for draw in range(step.num_draws)
        ]
