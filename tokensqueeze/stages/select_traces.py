"""verified_traces → selected_traces: the correct traces worth learning from, per problem."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tokensqueeze.config import SelectorSettings
from tokensqueeze.schema import SelectedTrace, VerifiedTrace
from tokensqueeze.selectors.choose import choose_traces
from tokensqueeze.selectors.shortest_correct import correct_shortest_first
from tokensqueeze.stages.stage import ShardResult


class SelectTraces:
    def __init__(self, selector: SelectorSettings):
        self._selector = selector

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[SelectedTrace]:
        by_problem: dict[str, list[VerifiedTrace]] = defaultdict(list)
        for trace in inputs["verified_traces"]:
            by_problem[trace.problem_id].append(trace)
        counts: Counter[str] = Counter()
        selected = []
        for traces in by_problem.values():
            correct = correct_shortest_first(traces)
            if not correct:
                counts["problems with no correct trace"] += 1
            elif len(correct) == len(traces):
                counts["problems with no incorrect trace"] += 1
            rank = {trace.trace_id: index for index, trace in enumerate(correct)}
            selected += [
                SelectedTrace(**asdict(trace), rank=rank[trace.trace_id], num_correct=len(correct), num_sampled=len(traces))
                for trace in choose_traces(self._selector, traces)
            ]
        return ShardResult(selected, counts=counts)
