"""The losses against the equations, worked out by hand, and their gradients against finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokensqueeze.config import DPO, SFT, DPOLength, DPOLengthSFT, ObjectiveSettings, SimPO
from tokensqueeze.errors import TrainingError
from tokensqueeze.objectives.objective import CompletionScores, PairLoss, needs_reference, needs_rejected, pair_loss

CHOSEN, REF_CHOSEN, CHOSEN_TOKENS = [-10.0, -7.0], [-12.0, -6.5], [20, 10]
REJECTED, REF_REJECTED, REJECTED_TOKENS = [-31.0, -25.0], [-30.0, -25.5], [40, 30]

OBJECTIVES: list[ObjectiveSettings] = [
    SFT(),
    DPO(beta=0.3),
    DPOLength(beta=0.3),
    DPOLength(beta=0.3, length_weight=0.7, length_margin="bonus"),
    DPOLengthSFT(beta=0.3),
    DPOLengthSFT(beta=0.3, length_margin="bonus", dpo_weight=0.8),
    SimPO(),
]


def test_dpo_is_the_mean_of_minus_log_sigmoid() -> None:
    # Log ratios: (−10 + 12) − (−31 + 30) = 3 and (−7 + 6.5) − (−25 + 25.5) = −1.
    by_hand = (math.log(1 + math.exp(-0.1 * 3)) + math.log(1 + math.exp(-0.1 * -1))) / 2
    result = _loss(DPO(beta=0.1))
    assert result.loss.item() == pytest.approx(by_hand, rel=1e-12)
    assert _value(result.margin) == pytest.approx(0.1 * (3 - 1) / 2)
    assert _value(result.preference_accuracy) == 0.5


def test_rewards_are_beta_times_the_log_ratios_and_their_difference_the_margin() -> None:
    # Chosen: −10 + 12 = 2 and −7 + 6.5 = −0.5; rejected: −31 + 30 = −1 and −25 + 25.5 = 0.5.
    for objective in (DPO(beta=0.1), DPOLength(beta=0.1), DPOLengthSFT(beta=0.1)):
        result = _loss(objective)
        assert _value(result.chosen_reward) == pytest.approx(0.1 * 1.5 / 2)
        assert _value(result.rejected_reward) == pytest.approx(0.1 * -0.5 / 2)
        assert _value(result.margin) == pytest.approx(_value(result.chosen_reward) - _value(result.rejected_reward))


def test_simpo_compares_log_probabilities_per_token_and_demands_a_margin() -> None:
    # Per token: −10/20 = −0.5 against −31/40 = −0.775, and −7/10 = −0.7 against −25/30 = −5/6.
    by_hand = (_minus_log_sigmoid(2.5 * (-0.5 + 0.775) - 1.2) + _minus_log_sigmoid(2.5 * (-0.7 + 5 / 6) - 1.2)) / 2
    result = _loss(SimPO(beta=2.5, gamma=1.2))
    assert result.loss.item() == pytest.approx(by_hand, rel=1e-12)
    assert _value(result.chosen_reward) == pytest.approx(2.5 * (-0.5 - 0.7) / 2)
    assert _value(result.rejected_reward) == pytest.approx(2.5 * (-0.775 - 5 / 6) / 2)
    assert _value(result.preference_accuracy) == 1.0


def test_simpo_as_its_authors_write_it_agrees() -> None:
    # Their code: the difference of the means, minus γ/β, all times β.
    mean = torch.tensor([CHOSEN, REJECTED], dtype=torch.float64) / torch.tensor([CHOSEN_TOKENS, REJECTED_TOKENS])
    logits = mean[0] - mean[1] - 1.0 / 2.0
    assert _loss(SimPO()).loss.item() == pytest.approx(-(2.0 * logits).sigmoid().log().mean().item(), rel=1e-12)


def test_what_the_reference_says_changes_no_loss_of_an_objective_without_one() -> None:
    for objective in (SFT(), SimPO()):
        assert not needs_reference(objective)
        unknown = _loss_of(objective, torch.tensor([*CHOSEN, *REJECTED], dtype=torch.float64), ref=math.nan)
        assert unknown.loss.item() == _loss(objective).loss.item()
        assert math.isnan(unknown.ref_chosen_logps.item())
    assert all(needs_reference(objective) for objective in (DPO(), DPOLength(), DPOLengthSFT()))


def test_dpo_l_alone_is_the_whole_loss_without_its_sft_part() -> None:
    for kind in ("target", "bonus"):
        alone = _loss(DPOLength(beta=0.1, length_weight=0.5, length_margin=kind))
        whole = _loss(DPOLengthSFT(beta=0.1, length_weight=0.5, length_margin=kind, dpo_weight=1.0))
        assert alone.loss.item() == whole.loss.item() == _value(alone.dpo_loss)


def test_target_margin_asks_for_more_the_longer_the_rejected_side() -> None:
    # β·log ratio − λ·log(ℓ_l/ℓ_w): 0.3 − 0.5·log 2 and −0.1 − 0.5·log 3.
    by_hand = (_minus_log_sigmoid(0.3 - 0.5 * math.log(2)) + _minus_log_sigmoid(-0.1 - 0.5 * math.log(3))) / 2
    objective = DPOLength(beta=0.1, length_weight=0.5)
    assert _loss(objective).loss.item() == pytest.approx(by_hand, rel=1e-12)


def test_bonus_margin_has_the_other_sign() -> None:
    by_hand = (_minus_log_sigmoid(0.3 + 0.5 * math.log(2)) + _minus_log_sigmoid(-0.1 + 0.5 * math.log(3))) / 2
    objective = DPOLength(beta=0.1, length_weight=0.5, length_margin="bonus")
    assert _loss(objective).loss.item() == pytest.approx(by_hand, rel=1e-12)


def test_sft_is_the_mean_over_tokens_and_not_over_pairs() -> None:
    assert _loss(SFT()).loss.item() == pytest.approx((10 + 7) / (20 + 10), rel=1e-12)


def test_whole_loss_weighs_dpo_and_sft() -> None:
    objective = DPOLengthSFT(beta=0.1, length_weight=0.0, dpo_weight=0.25)
    by_hand = 0.25 * (_minus_log_sigmoid(0.3) + _minus_log_sigmoid(-0.1)) / 2 + 0.75 * 17 / 30
    assert _loss(objective).loss.item() == pytest.approx(by_hand, rel=1e-12)


def test_dpo_is_log_2_where_policy_and_reference_agree() -> None:
    result = _loss(DPO(beta=0.1), chosen=REF_CHOSEN, rejected=REF_REJECTED)
    assert result.loss.item() == pytest.approx(math.log(2), rel=1e-15)


def test_first_dpo_l_loss_is_that_of_the_margin_alone() -> None:
    objective = DPOLength(beta=0.1, length_weight=1.0)
    # −log σ(−log r) = log(1 + r), with r = 2 and 3.
    by_hand = (math.log(3) + math.log(4)) / 2
    assert _loss(objective, chosen=REF_CHOSEN, rejected=REF_REJECTED).loss.item() == pytest.approx(by_hand, rel=1e-12)


def test_dpo_gradient_is_the_papers() -> None:
    # Rafailov et al., gradient below eq. 7: −β·σ(r̂_l − r̂_w) on log π(y_w), and the opposite on log π(y_l).
    logps = torch.tensor([*CHOSEN, *REJECTED], dtype=torch.float64, requires_grad=True)
    _loss_of(DPO(beta=0.1), logps).loss.backward()
    weights = [0.1 / (1 + math.exp(0.1 * 3)) / 2, 0.1 / (1 + math.exp(0.1 * -1)) / 2]
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-weights[0], -weights[1], weights[0], weights[1]], rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_gradients_agree_with_finite_differences(objective: ObjectiveSettings) -> None:
    logps = torch.tensor([*CHOSEN, *REJECTED], dtype=torch.float64, requires_grad=True)
    _loss_of(objective, logps).loss.backward()
    assert logps.grad is not None
    step = 1e-5
    for index in range(4):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[index] = step
        with torch.no_grad():
            difference = _loss_of(objective, logps + shift).loss - _loss_of(objective, logps - shift).loss
        assert logps.grad[index].item() == pytest.approx(difference.item() / (2 * step), abs=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_only_the_loss_carries_a_gradient(objective: ObjectiveSettings) -> None:
    logps = torch.tensor([*CHOSEN, *REJECTED], dtype=torch.float64, requires_grad=True)
    figures = vars(_loss_of(objective, logps))
    carrying = [name for name, value in figures.items() if value is not None and value.requires_grad]
    assert carrying == ["loss"]


@given(objective=st.sampled_from(OBJECTIVES), pairs=st.integers(2, 9), cut=st.integers(1, 8), seed=st.integers(0, 1000))
def test_micro_batches_add_up_to_their_batch(objective: ObjectiveSettings, pairs: int, cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cut = min(cut, pairs - 1)
    logps = -50 * torch.rand(4, pairs, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 90, (2, pairs), generator=generator)
    totals = {"batch_pairs": pairs, "batch_chosen_tokens": int(lengths[0].sum())}

    def share(part: slice) -> PairLoss:
        chosen = CompletionScores(logps_B=logps[0, part], ref_logps_B=logps[1, part], num_tokens_B=lengths[0, part])
        rejected = CompletionScores(logps_B=logps[2, part], ref_logps_B=logps[3, part], num_tokens_B=lengths[1, part])
        return pair_loss(objective, chosen=chosen, rejected=rejected, **totals)

    whole, first, rest = vars(share(slice(None))), vars(share(slice(cut))), vars(share(slice(cut, None)))
    assert all((value is None) == (first[name] is None) for name, value in whole.items())
    for name, value in whole.items():
        if value is None:
            continue
        assert value.item() == pytest.approx((first[name] + rest[name]).item(), rel=1e-12), name


def test_sft_needs_no_rejected_side_and_reports_none() -> None:
    result = pair_loss(
        SFT(), chosen=_side(CHOSEN, REF_CHOSEN, CHOSEN_TOKENS), rejected=None, batch_pairs=2, batch_chosen_tokens=30
    )
    assert not needs_rejected(SFT())
    assert (result.dpo_loss, result.rejected_logps, result.margin, result.preference_accuracy) == (None,) * 4
    assert (result.chosen_reward, result.rejected_reward) == (None, None)


def test_preference_without_a_rejected_side_is_an_error() -> None:
    assert needs_rejected(DPO())
    with pytest.raises(TrainingError, match=r"dpo compares two sides"):
        pair_loss(DPO(), chosen=_side(CHOSEN, REF_CHOSEN, CHOSEN_TOKENS), rejected=None, batch_pairs=2, batch_chosen_tokens=30)


def _loss(objective: ObjectiveSettings, chosen: list[float] = CHOSEN, rejected: list[float] = REJECTED) -> PairLoss:
    return _loss_of(objective, torch.tensor([*chosen, *rejected], dtype=torch.float64))


def _loss_of(objective: ObjectiveSettings, logps: torch.Tensor, ref: float | None = None) -> PairLoss:
    ref_chosen, ref_rejected = (REF_CHOSEN, REF_REJECTED) if ref is None else ([ref] * 2, [ref] * 2)
    chosen, rejected = _side(logps[:2], ref_chosen, CHOSEN_TOKENS), _side(logps[2:], ref_rejected, REJECTED_TOKENS)
    return pair_loss(objective, chosen=chosen, rejected=rejected, batch_pairs=2, batch_chosen_tokens=30)


def _side(logps: torch.Tensor | list[float], ref_logps: list[float], num_tokens: list[int]) -> CompletionScores:
    return CompletionScores(
        logps_B=torch.as_tensor(logps, dtype=torch.float64),
        ref_logps_B=torch.tensor(ref_logps, dtype=torch.float64),
        num_tokens_B=torch.tensor(num_tokens),
    )


def _minus_log_sigmoid(x: float) -> float:
    return math.log(1 + math.exp(-x))


def _value(tensor: torch.Tensor | None) -> float:
    assert tensor is not None
    return tensor.item()
