"""imported_traces → evaluation: responses that were made elsewhere, in the model's own tokens, with their verdicts."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tokensqueeze.config import VerifierSettings
from tokensqueeze.schema import EvaluationTrace
from tokensqueeze.stages.import_traces import ImportTraces
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.stages.verify_traces import build_verifier, judge_traces, verdict_counts


class EvaluateImported:
    def __init__(self, source: ModelSource, verifier: VerifierSettings):
        self._source = source
        self._import = ImportTraces(source)
        self._verifier = build_verifier(source, verifier)

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[EvaluationTrace]:
        imported = self._import(inputs)
        judged = judge_traces(imported.rows, inputs["problems"], self._source, self._verifier)
        rows = [EvaluationTrace(**asdict(trace), decoding="sampled") for trace in judged]
        return ShardResult(rows, counts={**imported.counts, **verdict_counts(judged)})
