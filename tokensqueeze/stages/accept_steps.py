"""selected_traces + step_candidates → refined_traces: each step's candidate that the rewriter accepts (paper section 3.2)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tokensqueeze.config import NoRewrite, RewriterSettings
from tokensqueeze.rewriters.decide import decide
from tokensqueeze.schema import Candidate, Problem, RefinedTrace, SelectedTrace, StepCandidates, StepDecision
from tokensqueeze.scoring.step_kl import StepKL
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.traces.anatomy import Span, replace_spans


class AcceptSteps:
    def __init__(self, source: ModelSource, rewriter: RewriterSettings):
        self._source, self._rewriter = source, rewriter
        self._model = None if isinstance(rewriter, NoRewrite) else source.scoring_model()

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[RefinedTrace]:
        prompts = {problem.problem_id: problem for problem in inputs["problems"]}
        steps: dict[str, list[StepCandidates]] = defaultdict(list)
        for step in inputs["step_candidates"]:
            steps[step.trace_id].append(step)
        refined = [self._refine(trace, prompts[trace.problem_id], steps[trace.trace_id]) for trace in inputs["selected_traces"]]
        decisions = [decision for trace in refined for decision in trace.decisions]
        return ShardResult(
            refined,
            tokens=sum(trace.num_tokens for trace in refined),
            counts={
                "steps": len(decisions),
                "steps rewritten": sum(decision.rewritten for decision in decisions),
                "candidates scored": sum(decision.num_scored for decision in decisions),
                "tokens saved": sum(trace.original_num_tokens - trace.num_tokens for trace in refined),
            },
        )

    def _refine(self, trace: SelectedTrace, problem: Problem, steps: Sequence[StepCandidates]) -> RefinedTrace:
        decisions, replacements = [], {}
        if self._model is not None and not isinstance(self._rewriter, NoRewrite) and steps:
            scorer = StepKL(
                self._model,
                prompt_token_ids=problem.prompt_token_ids,
                completion_token_ids=trace.token_ids,
                window_tokens=self._rewriter.window_tokens,
                reduction=self._rewriter.kl_reduction,
            )
            for step in steps:
                span = Span(step.token_start, step.token_end)
                decision, token_ids = self._decide(trace, step, span, scorer)
                decisions.append(decision)
                replacements[span] = token_ids
        token_ids = replace_spans(trace.token_ids, replacements)
        return RefinedTrace(
            trace_id=trace.trace_id,
            problem_id=trace.problem_id,
            text=self._source.tokens.completion(token_ids),
            token_ids=token_ids,
            num_tokens=len(token_ids),
            original_text=trace.text,
            original_num_tokens=trace.num_tokens,
            decisions=decisions,
        )

    def _decide(self, trace: SelectedTrace, step: StepCandidates, span: Span, scorer: StepKL) -> tuple[StepDecision, list[int]]:
        original = trace.token_ids[span.start : span.end]

        def score(candidates: Sequence[Candidate]) -> list[float]:
            return scorer.score(span, [candidate.token_ids for candidate in candidates])

        choice = decide(
            self._rewriter,
            step_text=step.step_text,
            step_token_ids=original,
            candidates=step.candidates,
            score=score,
        )
        kept = choice.candidate.token_ids if choice.candidate else original
        decision = StepDecision(
            step_index=step.step_index,
            original_text=step.step_text,
            kept_text=choice.candidate.text if choice.candidate else step.step_text,
            original_tokens=len(original),
            kept_tokens=len(kept),
            kl=choice.kl,
            reliability=choice.reliability,
            num_candidates=len(step.candidates),
            num_scored=choice.num_scored,
        )
        return decision, kept
