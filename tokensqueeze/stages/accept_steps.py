"""selected_traces + step_candidates → refined_traces: each step's candidate that the rewriter accepts (paper section 3.2)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokensqueeze.config import NoRewrite, RewriterSettings
from tokensqueeze.engines.checkpoint import context_length
from tokensqueeze.rewriters.decide import rule_of
from tokensqueeze.schema import Problem, RefinedTrace, SelectedTrace, StepCandidates, StepDecision
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.traces.anatomy import Span, replace_spans

if TYPE_CHECKING:
    from tokensqueeze.rewriters.judge_steps import JudgedStep


class AcceptSteps:
    def __init__(self, source: ModelSource, rewriter: RewriterSettings):
        self._source, self._rewriter = source, rewriter
        self._model = None if isinstance(rewriter, NoRewrite) else source.scoring_model()

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[RefinedTrace]:
        steps: dict[str, list[StepCandidates]] = defaultdict(list)
        for step in inputs["step_candidates"]:
            steps[step.trace_id].append(step)
        traces: list[SelectedTrace] = inputs["selected_traces"]
        judged = self._judge(inputs["problems"], traces, steps)
        refined = [self._refine(trace, steps[trace.trace_id], own) for trace, own in zip(traces, judged, strict=True)]
        decisions = [decision for trace in refined for decision in trace.decisions]
        counts = {
            "steps": len(decisions),
            "steps rewritten": sum(decision.rewritten for decision in decisions),
            "candidates scored": sum(decision.num_scored for decision in decisions),
            "tokens saved": sum(trace.original_num_tokens - trace.num_tokens for trace in refined),
        }
        if not isinstance(self._rewriter, NoRewrite) and self._rewriter.check_rest:
            counts["rewritten, over the bound on the whole rest"] = sum(decision.rest_passes is False for decision in decisions)
        return ShardResult(refined, tokens=sum(trace.num_tokens for trace in refined), counts=counts)

    def _judge(
        self, problems: Sequence[Problem], traces: Sequence[SelectedTrace], steps: Mapping[str, Sequence[StepCandidates]]
    ) -> "list[list[JudgedStep]]":
        rewriter = self._rewriter
        if self._model is None or isinstance(rewriter, NoRewrite):
            return [[] for _ in traces]
        # Here and not at the top: planning a run needs none of the models' code.
        from tokensqueeze.rewriters.judge_steps import Judging, TraceSteps, judge_steps
        from tokensqueeze.scoring.bounds import Bound
        from tokensqueeze.scoring.window_kl import WindowScorer

        prompts = {problem.problem_id: problem.prompt_token_ids for problem in problems}
        asked = [
            TraceSteps(
                prompts[trace.problem_id],
                trace.token_ids,
                [
                    (
                        _span(step),
                        rule_of(
                            rewriter,
                            step_text=step.step_text,
                            step_token_ids=trace.token_ids[step.token_start : step.token_end],
                            candidates=step.candidates,
                        ),
                    )
                    for step in steps[trace.trace_id]
                ],
            )
            for trace in traces
        ]
        judging = Judging(
            Bound(rewriter.kl_bound, rewriter.kl_reduction, rewriter.bound_scale),
            rewriter.window_tokens,
            context_length(self._source.folder),
            rewriter.check_rest,
        )
        return judge_steps(WindowScorer(self._model), asked, judging)

    def _refine(self, trace: SelectedTrace, steps: Sequence[StepCandidates], judged: "Sequence[JudgedStep]") -> RefinedTrace:
        decisions, replacements = [], {}
        if judged:
            for step, own in zip(steps, judged, strict=True):
                kept = own.choice.candidate
                if kept:
                    replacements[_span(step)] = kept.token_ids
                decisions.append(_decision(step, own))
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


def _span(step: StepCandidates) -> Span:
    return Span(step.token_start, step.token_end)


def _decision(step: StepCandidates, judged: "JudgedStep") -> StepDecision:
    choice, rejected = judged.choice, judged.choice.rejected
    length = len(_span(step))
    return StepDecision(
        step_index=step.step_index,
        original_text=step.step_text,
        kept_text=choice.candidate.text if choice.candidate else step.step_text,
        original_tokens=length,
        kept_tokens=len(choice.candidate.token_ids) if choice.candidate else length,
        kl=choice.kl,
        reliability=choice.reliability,
        num_candidates=len(step.candidates),
        num_scored=choice.num_scored,
        rejected_text=rejected.candidate.text if rejected else None,
        rejected_tokens=len(rejected.candidate.token_ids) if rejected else None,
        rejected_kl=rejected.kl if rejected else None,
        rejected_reliability=rejected.reliability if rejected else None,
        rest_kl=judged.rest.kl if judged.rest else None,
        rest_passes=judged.rest.passes if judged.rest else None,
    )
