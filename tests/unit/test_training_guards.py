"""Scores of another model refuse to start, drift warns once and then stops, and what is not finite leaves evidence."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tokensqueeze.config import TrainingSettings
from tokensqueeze.errors import TrainingError
from tokensqueeze.fingerprint import model_fingerprint
from tokensqueeze.objectives.objective import CompletionScores
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training import training_log
from tokensqueeze.training.guards import (
    DRIFT_STEPS,
    DriftWatch,
    Evidence,
    ScoredMicroBatch,
    check_scores,
    dev_accuracy_warning,
    not_finite,
    save_evidence,
)
from tokensqueeze.training.pairs import EncodedPair, Side, UsablePairs
from tokensqueeze.training.training_log import DevRow, Row, StepRow, WarningRow

SETTINGS = TrainingSettings(max_chosen_drop=0.2, max_rejected_drop=0.5)


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"])
def test_scores_of_a_model_with_one_other_file_are_refused(tmp_path: Path, changed: str) -> None:
    model = _model(tmp_path)
    table = _scored_by(model_fingerprint(model), tmp_path)
    check_scores(table, _usable(3), model_dir=model)
    (model / changed).write_text("something else")
    with pytest.raises(TrainingError, match=r"the reference scores are of another model: .* score the pairs again"):
        check_scores(table, _usable(3), model_dir=model)


def test_table_that_lost_pairs_is_refused_and_pairs_left_out_are_not_lost(tmp_path: Path) -> None:
    model = _model(tmp_path)
    table = _scored_by(model_fingerprint(model), tmp_path)
    check_scores(table, UsablePairs(_usable(2).pairs, {"p9": "too long"}), model_dir=model)
    with pytest.raises(TrainingError, match="2 pairs, but its manifest counts 3; delete the folder"):
        check_scores(table, _usable(2), model_dir=model)


def test_table_made_by_hand_names_no_model_and_is_left_to_the_first_step(tmp_path: Path) -> None:
    table = Table(tmp_path / "scored_pairs", ScoredPair)
    table.complete({"num_shards": 1})
    check_scores(table, _usable(3), model_dir=_model(tmp_path))


def test_drift_is_a_mean_over_eight_steps_that_warns_once_at_half_of_the_way() -> None:
    watch = _watch()
    # The mean over eight steps of 2, 4, …: it reaches 10 = 0.2 · 100 / 2 at step 9, with (4 + … + 18) / 8 = 11.
    warned = [(step, watch.see(_step(step, chosen=-2.0 * step))) for step in range(1, 13)]
    assert [step for step, warnings in warned if warnings] == [9]
    ((warning,),) = [warnings for _, warnings in warned if warnings]
    assert (warning.step, warning.alarm) == (9, "chosen")
    assert warning.warning.startswith("step 9: over the last 8 steps")
    assert (
        "chosen -11.0 (-0.110 per token), rejected +0.0 (+0.000 per token); half of training.max_chosen_drop = 0.2"
        in warning.warning
    )
    assert "smaller training.learning_rate" in warning.warning


def test_drift_over_the_limit_stops_with_figures_and_ways_out() -> None:
    watch = _watch()
    for step in range(1, DRIFT_STEPS):
        assert watch.see(_step(step, chosen=-30.0)) == []
    message = (
        r"step 8: .*: chosen -30\.0 \(-0\.300 per token\), .*; training\.max_chosen_drop = 0\.2 is reached\..* raise the limit"
    )
    with pytest.raises(TrainingError, match=message):
        watch.see(_step(8, chosen=-30.0))


def test_single_wild_batch_is_no_drift() -> None:
    watch = _watch()
    assert [watch.see(_step(step, chosen=-70.0 if step == 20 else 0.0)) for step in range(1, 40)] == [[]] * 39


def test_rejected_side_has_a_limit_of_its_own_and_rising_is_no_drift() -> None:
    watch = _watch()
    warned = [w for step in range(1, 30) for w in watch.see(_step(step, chosen=400.0, rejected=-60.0))]
    assert [(warning.step, warning.alarm) for warning in warned] == [(8, "rejected")]
    with pytest.raises(TrainingError, match=r"training\.max_rejected_drop = 0\.5 is reached"):
        for step in range(30, 40):
            watch.see(_step(step, chosen=400.0, rejected=-101.0))


@pytest.mark.parametrize(
    ("tokens", "chosen", "rejected"),
    [
        ((63, 147), -0.9, -25.1),  # the lowest of twelve trainings of the demo, over eight steps
        ((290, 265), -17.4, -29.4),  # a published 7B model, plain DPO with beta 0.1, half through its epoch
    ],
)
def test_sound_training_raises_no_alarm_by_default(tokens: tuple[int, int], chosen: float, rejected: float) -> None:
    watch = DriftWatch(TrainingSettings(), [_pair("a", *tokens)])
    assert [watch.see(_step(step, chosen=chosen, rejected=rejected)) for step in range(1, 100)] == [[]] * 99


def test_demo_broken_by_plain_dpo_is_warned_of_by_default() -> None:
    # Measured at a learning rate of 1e-3: a mean of −9.0 and −46.2 at step 12, where 12 % of the dev problems were left.
    watch = DriftWatch(TrainingSettings(), [_pair("a", 63, 147)])
    warned = [w for step in range(1, 9) for w in watch.see(_step(step, chosen=-9.0, rejected=-46.2))]
    assert [warning.alarm for warning in warned] == ["chosen"]


def test_short_completions_may_move_by_as_many_nats_as_longer_ones() -> None:
    # Counted as 64 tokens: 12.8 nats stop, and 6.4 warn.
    watch = DriftWatch(SETTINGS, [_pair("a", 5, 9)])
    assert [watch.see(_step(step, chosen=-6.3)) for step in range(1, 20)] == [[]] * 19
    with pytest.raises(TrainingError, match="is reached"):
        for step in range(20, 30):
            watch.see(_step(step, chosen=-12.9))


def test_without_reference_scores_there_is_nothing_to_watch() -> None:
    watch = _watch()
    assert [watch.see(_step(step, chosen=None, rejected=None)) for step in range(1, 20)] == [[]] * 19


@pytest.mark.parametrize("resumed_at", range(20))
def test_resumed_watch_says_what_an_undisturbed_one_says(resumed_at: int) -> None:
    rows = [_step(step, chosen=-float(step), rejected=-6.0 * step) for step in range(1, 21)]
    undisturbed = _log_of(_watch(), rows)
    assert [row.alarm for row in undisturbed if isinstance(row, WarningRow)] == ["rejected", "chosen"]
    before = [row for row in undisturbed if row.step <= resumed_at]
    assert before + _log_of(_watch(before), rows[resumed_at:]) == undisturbed


def test_dev_accuracy_warns_once_at_half_of_the_drop_that_stops() -> None:
    base = DevRow(0, 0.875, 40.0)
    assert dev_accuracy_warning(DevRow(5, 0.75, 40.0), so_far=[base], max_drop=0.25) is None
    now = DevRow(10, 0.6875, 40.0)
    warning = dev_accuracy_warning(now, so_far=[base, now], max_drop=0.25)
    assert warning is not None
    assert (warning.step, warning.alarm) == (10, "dev_accuracy")
    assert "dev accuracy fell from 87.5% to 68.8%, more than half of training.max_dev_accuracy_drop = 0.25" in warning.warning
    assert dev_accuracy_warning(now, so_far=[base, warning], max_drop=0.25) is None


def test_evidence_holds_pairs_parameters_and_the_logs_last_rows_as_plain_json(tmp_path: Path) -> None:
    log_path = tmp_path / "training_log.jsonl"
    for step in range(1, 31):
        training_log.append(log_path, _step(step))
    scored = ScoredMicroBatch.of(
        [_pair("a", 2, 3), _pair("b", 4, 5)],
        CompletionScores(torch.tensor([-1.5, math.nan]), torch.tensor([-1.25, -2.0]), torch.tensor([2, 4])),
        CompletionScores(torch.tensor([-math.inf, -3.0]), torch.tensor([-2.5, -3.5]), torch.tensor([3, 5])),
    )
    evidence = Evidence(31, "the loss is nan", 1e-4, scored.figures(), None, ["lm_head.weight"])
    path = save_evidence(evidence, log_path=log_path)
    assert path == tmp_path / "training_evidence.json"
    saved = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert saved["pairs"] == [
        {
            "pair_id": "a",
            "prompt_tokens": 1,
            "chosen_tokens": 2,
            "chosen_logps": -1.5,
            "ref_chosen_logps": -1.25,
            "rejected_tokens": 3,
            "rejected_logps": "-inf",
            "ref_rejected_logps": -2.5,
        },
        {
            "pair_id": "b",
            "prompt_tokens": 1,
            "chosen_tokens": 4,
            "chosen_logps": "nan",
            "ref_chosen_logps": -2.0,
            "rejected_tokens": 5,
            "rejected_logps": -3.0,
            "ref_rejected_logps": -3.5,
        },
    ]
    assert (saved["step"], saved["what"], saved["learning_rate"]) == (31, "the loss is nan", 1e-4)
    assert (saved["gradients_not_finite"], saved["weights_not_finite"]) == (None, ["lm_head.weight"])
    assert [row["step"] for row in saved["log"]] == list(range(11, 31))


def test_evidence_keeps_numbers_and_not_what_they_were_computed_from() -> None:
    logps = torch.zeros(1, requires_grad=True)
    scores = CompletionScores(logps * 2, torch.zeros(1), torch.ones(1))
    scored = ScoredMicroBatch.of([_pair("a", 1, 1)], scores, scores)
    assert scored.rejected is not None
    assert (scored.chosen.logps_B.grad_fn, scored.rejected.logps_B.grad_fn) == (None, None)


def test_parameters_that_are_not_finite_are_named() -> None:
    tensors = {"fine": torch.ones(2), "none": None, "nan": torch.tensor([0.0, math.nan]), "inf": torch.tensor([math.inf])}
    assert not_finite(tensors.items()) == ["nan", "inf"]


def _watch(so_far: Sequence[Row] = ()) -> DriftWatch:
    """Of completions whose limits are 20 nats for the chosen ones and 100 for the rejected."""
    return DriftWatch(SETTINGS, [_pair("a", 100, 200)], so_far)


def _log_of(watch: DriftWatch, rows: Sequence[StepRow]) -> list[Row]:
    log: list[Row] = []
    for row in rows:
        log.append(row)
        try:
            log += watch.see(row)
        except TrainingError:
            break
    return log


def _model(folder: Path) -> Path:
    model = folder / "model"
    model.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        (model / name).write_text(name)
    return model


def _scored_by(fingerprint: str, folder: Path) -> Table[ScoredPair]:
    table = Table(folder / "scored_pairs", ScoredPair)
    table.complete({"num_shards": 1, "counts": {"rows": 3, "tokens": 30}, "fingerprinted": {"model": fingerprint}})
    return table


def _usable(count: int) -> UsablePairs:
    return UsablePairs([_pair(f"p{number}", 2, 3) for number in range(count)], {})


def _pair(pair_id: str, chosen: int, rejected: int) -> EncodedPair:
    sides = [Side(np.arange(length, dtype=np.int32), -1.0) for length in (chosen, rejected)]
    return EncodedPair(pair_id, np.array([7], np.int32), *sides)


def _step(step: int, *, chosen: float | None = 0.0, rejected: float | None = 0.0) -> StepRow:
    """A step whose log-probabilities lie this far above the reference's −40 and −90; None: the reference was not asked."""
    return StepRow(
        step=step,
        epoch=1,
        loss=0.5,
        dpo_loss=0.5,
        sft_loss=0.5,
        chosen_logps=-40 + (chosen or 0.0),
        rejected_logps=-90 + (rejected or 0.0),
        ref_chosen_logps=None if chosen is None else -40.0,
        ref_rejected_logps=None if rejected is None else -90.0,
        chosen_reward=0.1,
        rejected_reward=-0.1,
        margin=0.2,
        preference_accuracy=0.75,
        grad_norm=1.0,
        learning_rate=1e-4,
        tokens=1000,
        seconds=0.5,
        max_memory_bytes=10**9,
    )
