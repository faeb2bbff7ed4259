"""refined_traces + verified_traces → preference_pairs (METHOD, adaptive reasoning depth selection)."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from tokensqueeze.config import PairingSettings
from tokensqueeze.schema import PreferencePair, RefinedTrace, VerifiedTrace
from tokensqueeze.selectors.pairing import chosen_alone, preference_pairs
from tokensqueeze.stages.stage import ShardResult


class BuildPairs:
    def __init__(self, settings: PairingSettings, *, with_rejected: bool):
        self._settings, self._with_rejected = settings, with_rejected

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[PreferencePair]:
        chosen: dict[str, list[RefinedTrace]] = defaultdict(list)
        traces: dict[str, list[VerifiedTrace]] = defaultdict(list)
        for refined in inputs["refined_traces"]:
            chosen[refined.problem_id].append(refined)
        for trace in inputs["verified_traces"]:
            traces[trace.problem_id].append(trace)
        counts: Counter[str] = Counter()
        pairs: list[PreferencePair] = []
        for problem in inputs["problems"]:
            own_chosen, own_traces = chosen[problem.problem_id], traces[problem.problem_id]
            if self._with_rejected:
                own = preference_pairs(problem, own_chosen, own_traces, self._settings)
            else:
                own = chosen_alone(problem, own_chosen)
            counts["problems with pairs" if own else f"problems dropped: {_why_none(own_chosen, own_traces)}"] += 1
            pairs += own
        return ShardResult(pairs, counts=counts)


def _why_none(chosen: list[RefinedTrace], traces: list[VerifiedTrace]) -> str:
    if not chosen:
        return "no correct trace"
    if all(trace.verdict == "correct" for trace in traces):
        return "no incorrect trace"
    return "no incorrect trace longer than the chosen"
