"""What keeps a training from going wrong quietly: stale scores refuse to start, drift warns and then stops, and a step that
is not finite leaves its evidence behind.

Every limit warns at half of the way. Pure functions, and one watcher that is rebuilt from the log, so that a resumed
training says what an undisturbed one would have said.
"""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tokensqueeze.config import TrainingSettings
from tokensqueeze.errors import TrainingError
from tokensqueeze.fingerprint import model_fingerprint
from tokensqueeze.objectives.objective import CompletionScores
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table, write_json
from tokensqueeze.training import training_log
from tokensqueeze.training.pairs import EncodedPair, UsablePairs
from tokensqueeze.training.training_log import Alarm, DevRow, Row, StepRow, WarningRow

DRIFT_STEPS = 8
"""Optimiser steps that a drift is averaged over: single batches swing by several nats."""
_FEWEST_TOKENS = 64
"""Completions count as at least this long: what DPO wants of a pair is some nats, however short its sides are."""
_LOG_ROWS_KEPT = 20
_WAYS_OUT = "Try a smaller training.learning_rate, a larger objective.beta, or more SFT (a lower objective.dpo_weight)"


def check_scores(table: Table[ScoredPair], usable: UsablePairs, *, model_dir: Path) -> None:
    """Raise `TrainingError` unless the table is whole and was scored by the very model that is to be trained.

    Weights, configuration, tokenizer and chat template all count. A table that names no model, as one made by hand, is left
    to the comparison of log-probabilities at the first step.
    """
    manifest = table.manifest()
    rows, expected = len(usable.pairs) + len(usable.left_out), manifest.get("counts", {}).get("rows")
    if expected is not None and rows != expected:
        raise TrainingError(
            f"{table.path}: {rows} pairs, but its manifest counts {expected:g}; delete the folder and score the pairs again"
        )
    scored_by = manifest.get("fingerprinted", {}).get("model")
    if scored_by is not None and scored_by != (own := model_fingerprint(model_dir)):
        raise TrainingError(
            f"{table.path}: the reference scores are of another model: weights, configuration, tokenizer or chat template "
            f"differ (fingerprint {scored_by}; that of {model_dir} is {own}). Delete the folder and score the pairs again"
        )


class DriftWatch:
    """Warns once when a side's log-probability has fallen half of what is allowed below the reference's, then stops.

    Both sides falling together is how DPO breaks a model: the loss sees their difference alone.
    """

    def __init__(self, settings: TrainingSettings, pairs: Sequence[EncodedPair], so_far: Iterable[Row] = ()):
        self._limits: dict[Alarm, float] = {"chosen": settings.max_chosen_drop, "rejected": settings.max_rejected_drop}
        self._tokens = {side: max(_FEWEST_TOKENS, mean_tokens(pairs, side)) for side in self._limits}
        self._steps: deque[StepRow] = deque(maxlen=DRIFT_STEPS)
        self._warned: set[Alarm] = set()
        for row in so_far:
            if isinstance(row, StepRow):
                self._steps.append(row)
            elif isinstance(row, WarningRow):
                self._warned.add(row.alarm)

    def see(self, row: StepRow) -> list[WarningRow]:
        """Take in a step; return what there is to warn of. Raises `TrainingError` where a limit is passed."""
        self._steps.append(row)
        ratios = {side: mean_log_ratio(self._steps, side) for side in self._limits}
        told = ", ".join(
            f"{side} {ratio:+.1f} ({ratio / self._tokens[side]:+.3f} per token)"
            for side, ratio in ratios.items()
            if ratio is not None
        )
        warnings = []
        for side, limit in self._limits.items():
            ratio = ratios[side]
            drop = 0.0 if ratio is None else -ratio / self._tokens[side]
            if drop < limit / 2:
                continue
            what = (
                f"step {row.step}: over the last {DRIFT_STEPS} steps a completion's log-probability has changed by so many "
                f"nats from the base model's: {told}"
            )
            key = f"training.max_{side}_drop = {limit:g}"
            if drop >= limit:
                raise TrainingError(f"{what}; {key} is reached. {_WAYS_OUT}; or raise the limit, and run again to go on")
            if side not in self._warned:
                self._warned.add(side)
                warnings.append(WarningRow(row.step, side, f"{what}; half of {key}, where training stops. {_WAYS_OUT}"))
        return warnings


def mean_tokens(pairs: Sequence[EncodedPair], side: Alarm) -> float:
    """Return the mean length of one side's completions, in tokens; 0 where there is no such side."""
    sides = [pair.chosen if side == "chosen" else pair.rejected for pair in pairs]
    return fmean(0 if completion is None else len(completion.token_ids) for completion in sides)


def mean_log_ratio(steps: Sequence[StepRow] | deque[StepRow], side: Alarm) -> float | None:
    """Return log π/π_ref of one side's completions over the steps, in nats; None until there are enough, or no reference."""
    ratios = [step.chosen_log_ratio if side == "chosen" else step.rejected_log_ratio for step in steps]
    known = [ratio for ratio in ratios if ratio is not None]
    return fmean(known) if len(known) == DRIFT_STEPS else None


def dev_accuracy_warning(now: DevRow, *, so_far: Sequence[Row], max_drop: float) -> WarningRow | None:
    """Return a warning if accuracy has come half of the way to where training stops, and none was given before."""
    base = next(row for row in so_far if isinstance(row, DevRow))
    warned = any(isinstance(row, WarningRow) and row.alarm == "dev_accuracy" for row in so_far)
    if warned or base.dev_accuracy - now.dev_accuracy <= max_drop / 2:
        return None
    return WarningRow(
        now.step,
        "dev_accuracy",
        f"step {now.step}: dev accuracy fell from {base.dev_accuracy:.1%} to {now.dev_accuracy:.1%}, more than half of "
        f"training.max_dev_accuracy_drop = {max_drop:g}, where training stops. {_WAYS_OUT}",
    )


@dataclass(frozen=True)
class ScoredMicroBatch:
    """The pairs of a forward pass and what policy and reference said about them, kept until the step is done."""

    pairs: Sequence[EncodedPair]
    chosen: CompletionScores
    rejected: CompletionScores | None

    @classmethod
    def of(
        cls, pairs: Sequence[EncodedPair], chosen: CompletionScores, rejected: CompletionScores | None
    ) -> "ScoredMicroBatch":
        """Keep the numbers alone: what they were computed from must not stay in memory."""
        return cls(pairs, _detached(chosen), None if rejected is None else _detached(rejected))

    def figures(self) -> list[dict[str, Any]]:
        """Return a JSON object per pair: its lengths in tokens and its log-probabilities in nats."""
        sides = {"chosen": self.chosen} | ({"rejected": self.rejected} if self.rejected is not None else {})
        rows: list[dict[str, Any]] = [
            {"pair_id": pair.pair_id, "prompt_tokens": len(pair.prompt_token_ids)} for pair in self.pairs
        ]
        for name, scores in sides.items():
            columns = {
                f"{name}_tokens": scores.num_tokens_B,
                f"{name}_logps": scores.logps_B,
                f"ref_{name}_logps": scores.ref_logps_B,
            }
            for column, values_B in columns.items():
                for row, value in zip(rows, values_B.tolist(), strict=True):
                    row[column] = value
        return rows


@dataclass(frozen=True)
class Evidence:
    """What is known of a step that was not finite. `None`: it could not be had, as where ZeRO has cut it to pieces."""

    step: int
    what: str
    learning_rate: float
    pairs: list[dict[str, Any]]
    gradients_not_finite: list[str] | None
    weights_not_finite: list[str] | None
    """Names of parameters."""


def save_evidence(evidence: Evidence, *, log_path: Path) -> Path:
    """Write it beside the log, with the log's last rows, and return where."""
    path = log_path.with_name("training_evidence.json")
    rows = [asdict(row) for row in training_log.read(log_path)[-_LOG_ROWS_KEPT:]]
    write_json(path, _plain_json(asdict(evidence) | {"log": rows}))
    return path


def not_finite(named_tensors: Iterable[tuple[str, torch.Tensor | None]]) -> list[str]:
    """Return the names of those tensors that hold a number that is not finite."""
    return [name for name, tensor in named_tensors if tensor is not None and not bool(torch.isfinite(tensor).all())]


def _detached(scores: CompletionScores) -> CompletionScores:
    return CompletionScores(scores.logps_B.detach(), scores.ref_logps_B, scores.num_tokens_B)


def _plain_json(value: Any) -> Any:
    """Return the value with `"nan"` and `"inf"` as text: JSON has no such numbers, and most readers refuse them."""
    return json.loads(json.dumps(value), parse_constant=lambda name: str(float(name)))
