"""What a report shows: the run's tables and manifests, as the pipeline hands them over; empty where a run stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokensqueeze.config import Settings
from tokensqueeze.schema import EvaluationTrace, RefinedTrace, ScoredPair, SelectedTrace, VerifiedTrace


@dataclass(frozen=True)
class StageRecord:
    """One stage's manifest in short; a reused stage's seconds are those of the run that made it."""

    name: str
    rows: int
    seconds: float
    tokens: int
    workers: int
    reused: bool
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData:
    title: str
    method_name: str
    method_summary: str
    settings: Settings
    versions: Mapping[str, str]
    stages: Sequence[StageRecord]
    token_budget: int
    questions: Mapping[str, str]
    """By problem id, for the traces that are shown."""
    verified_traces: Sequence[VerifiedTrace] = ()
    selected_traces: Sequence[SelectedTrace] = ()
    refined_traces: Sequence[RefinedTrace] = ()
    pairs: Sequence[ScoredPair] = ()
    drop_counts: Mapping[str, int] = field(default_factory=dict)
    """Problems that gave no pair, by reason."""
    training_log: Sequence[Mapping[str, Any]] = ()
    """The rows of training_log.jsonl: those with `loss` are steps, with `dev_accuracy` looks at the dev problems, with
    `left_out` what it started from, with `warning` what it warned of."""
    base_evaluation: Sequence[EvaluationTrace] = ()
    squeezed_evaluation: Sequence[EvaluationTrace] = ()
    evaluation: Mapping[str, Any] | None = None
    """The contents of evaluation.json."""
