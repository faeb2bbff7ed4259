"""preference_pairs → scored_pairs: the frozen reference's log-probabilities, computed once (METHOD, objective)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tokensqueeze.schema import PreferencePair, ScoredPair
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult


class ScoreReference:
    def __init__(self, source: ModelSource):
        self._model = source.scoring_model()

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[ScoredPair]:
        # Here and not at the top: planning a run needs none of the models' code.
        from tokensqueeze.objectives.reference_logps import reference_logps

        pairs: list[PreferencePair] = inputs["preference_pairs"]
        # A chosen trace stands in many pairs; it is scored once.
        sides: dict[tuple[str, bool], tuple[list[int], list[int]]] = {}
        for pair in pairs:
            sides[pair.chosen_trace_id, True] = (pair.prompt_token_ids, pair.chosen_token_ids)
            if pair.rejected_trace_id is not None and pair.rejected_token_ids is not None:
                sides[pair.rejected_trace_id, False] = (pair.prompt_token_ids, pair.rejected_token_ids)
        logps = dict(zip(sides, reference_logps(self._model, list(sides.values())), strict=True))
        scored = [
            ScoredPair(
                **asdict(pair),
                ref_chosen_logps=logps[pair.chosen_trace_id, True],
                ref_rejected_logps=logps[pair.rejected_trace_id, False] if pair.rejected_trace_id else None,
            )
            for pair in pairs
        ]
        return ShardResult(scored, tokens=sum(len(completion) for _, completion in sides.values()))
