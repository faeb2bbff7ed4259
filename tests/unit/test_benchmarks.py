"""What the benchmarks compute by themselves."""

import pytest

from benchmarks.demo_methods import ARMS, one_shot_share, settings_of


def test_one_shot_share_counts_hard_steps_and_leaves_out_checks_and_easy_ones() -> None:
    text = "\n\n".join(
        [
            "47 + 38 - 7 = 78.",  # one shot
            "47 + 38 = 85, 85 - 7 = 78.",  # worked out
            "Now, Tom buys 3. I need to add 3 and add 4. Let me see: 1 + 3 = 4, 4 + 4 = 8. So 1 + 3 + 4 = 8.",  # worked out
            "Wait, let me check that. 47 + 38 = 85, 85 - 7 = 78. Yes, 78 is correct.",
            "5 + 6 = 11.",
        ]
    )
    assert one_shot_share([text]) == pytest.approx(1 / 3)
    assert one_shot_share(["5 + 6 = 11."]) is None


def test_arms_share_what_the_demo_tunes_and_keep_what_they_are_about() -> None:
    settings = {name: settings_of(arm, seed=1) for name, arm in ARMS.items()}
    assert all(s.sampling == settings["tokensqueeze"].sampling for s in settings.values())
    assert all(s.training.seed == 1 for s in settings.values())
    assert settings["tokensqueeze"].rewriter.name == "kl_bound"
    assert settings["tokensqueeze"].rewriter.num_candidates == settings["tokensqueeze_reliable"].rewriter.num_candidates  # type: ignore[union-attr]
    assert settings["no_length_margin"].objective.length_weight == 0.0  # type: ignore[union-attr]
    assert settings["no_length_margin"].objective.beta == settings["tokensqueeze"].objective.beta  # type: ignore[union-attr]
    assert settings["random_sft"].selector.name == "random_correct"
