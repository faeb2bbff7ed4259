"""What the benchmarks compute by themselves."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.demo_methods import ARMS, one_shot_share, settings_of
from benchmarks.gold_policies import _gold_pairs
from benchmarks.shortcut_reliability import result_of
from tokensqueeze.demo import world
from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.pipeline.plan import plan_run


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


def test_every_arm_has_a_title_of_its_own() -> None:
    titles = [arm.title for arm in ARMS.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    "marked",
    [
        "47 + 38 = 85, 85 - 7 = [78].",
        "So Tom has [78] pens.",
        # Said again, it is decided where it is said first.
        "47 + 38 - 7 = [78]. So it is 78.",
        "47 + 38 - 7 = [78], and 78 = 78.",
        # Where it doesn't follow an equals sign it is given, not decided.
        "78 - 0 = [78].",
        "78 pens, and 3 more: 78 + 3 = 81. No, he has [78].",
        # A longer number that contains it is another.
        "70 + 8 = 178. So [78].",
        "$47 + 31$ = $[78]$. The sum is $78$.",
        "Half of 2,501.0 is [1,250.5].",
    ],
)
def test_the_result_of_a_step_is_its_last_number_where_it_is_first_equated(marked: str) -> None:
    before, result, after = marked.replace("]", "[").split("[")
    found = result_of(before + result + after)
    assert found is not None
    assert (found.group(), found.start()) == (result, len(before))


def test_a_text_without_a_number_states_no_result() -> None:
    assert result_of("Hmm, let me think about this.") is None


def test_a_gold_pair_holds_the_worlds_own_trace_and_ends_the_sequence(tmp_path: Path) -> None:
    settings = settings_of(ARMS["gold_mixed"], seed=0)
    assert settings.problems.train
    few = settings.problems.train.model_copy(update={"limit": 3})
    settings = settings.model_copy(update={"problems": settings.problems.model_copy(update={"train": few})})
    pairs = _gold_pairs(plan_run(settings, tmp_path), "mixed", tmp_path).rows()
    stories = world.problems("train", 3, seed=few.seed)
    assert [pair.chosen for pair in pairs] == [
        world.completion(world.gold_trace(story, "mixed"), story.answer) for story in stories
    ]
    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir())
    for story, pair in zip(stories, pairs, strict=True):
        *text_ids, last = pair.chosen_token_ids
        assert last == tokenizer.eos_token_id
        assert tokenizer.decode(text_ids) == pair.chosen
        assert story.question in pair.prompt
        assert (pair.rejected, pair.chosen_num_tokens) == (None, len(text_ids) + 1)
