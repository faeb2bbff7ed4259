"""Methods: what a name stands for, and how settings of one's own override its parts."""

from pathlib import Path
from typing import Any

import pytest

from tokensqueeze.config import SFT, AdaptiveDepth, DPOLengthSFT, FixedQuantile, KLBound, NoRewrite, Reliable, Shortest
from tokensqueeze.demo import settings_file
from tokensqueeze.errors import SettingsError
from tokensqueeze.methods import METHODS, load_settings, settings_from

PROBLEMS: dict[str, Any] = {"problems": {"train": {"path": "demo:train"}}}


def parts(**values: Any) -> tuple[Any, Any, Any]:
    settings = settings_from(PROBLEMS | values)
    return settings.selector, settings.rewriter, settings.objective


def test_without_a_word_the_method_is_the_papers() -> None:
    assert parts() == (AdaptiveDepth(alpha=0.2), KLBound(num_candidates=64, kl_bound=0.005), DPOLengthSFT())


def test_a_method_is_three_parts() -> None:
    assert parts(method="tokensqueeze_reliable") == (AdaptiveDepth(), Reliable(), DPOLengthSFT())
    assert parts(method="shortest_sft") == (Shortest(), NoRewrite(), SFT())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_called_what_it_is_filed_under_and_needs_nothing_but_problems(name: str) -> None:
    method = METHODS[name]
    assert (method.name, settings_from(PROBLEMS | {"method": name}).method) == (name, name)
    assert parts(method=name) == (method.selector, method.rewriter, method.objective)
    assert method.summary.endswith(".")


def test_a_setting_of_a_part_needs_no_name() -> None:
    assert parts(rewriter={"kl_bound": 0.1})[1] == KLBound(kl_bound=0.1)
    assert parts(rewriter={"name": "kl_bound", "kl_bound": 0.1})[1] == KLBound(kl_bound=0.1)


def test_another_name_replaces_a_part_whole_and_leaves_the_others() -> None:
    chosen = parts(method="tokensqueeze_reliable", selector={"name": "fixed_quantile"}, objective={"name": "sft"})
    assert chosen == (FixedQuantile(quantile=0.2), Reliable(), SFT())


def test_a_setting_of_another_method_is_told_as_unknown() -> None:
    with pytest.raises(SettingsError, match=r"rewriter\.min_reliability: unknown setting; known here: .*kl_bound, "):
        parts(method="tokensqueeze", rewriter={"min_reliability": 0.5})


def test_an_unknown_method_is_told_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="method: 'tokensqeeze' is not a method; choose from tokensqueeze, "):
        parts(method="tokensqeeze")


def test_a_part_that_is_no_section_is_told() -> None:
    with pytest.raises(SettingsError, match=r"selector: .*'shortest'"):
        parts(selector="shortest")


def test_filling_in_a_method_leaves_the_given_values_alone() -> None:
    values = PROBLEMS | {"rewriter": {"kl_bound": 0.1}}
    settings_from(values)
    assert values == PROBLEMS | {"rewriter": {"kl_bound": 0.1}}


def test_the_demos_settings_are_right_and_can_be_overridden() -> None:
    settings = load_settings(settings_file(), ["sampling.num_samples=3", "rewriter={name='none'}"])
    assert (settings.model.path, settings.sampling.num_samples, settings.rewriter) == ("demo", 3, NoRewrite())


def test_settings_shipped_with_the_package_are_right() -> None:
    shipped = [settings_file(), *Path(__file__, "../../../ray_jobs/configs").resolve().glob("*.toml")]
    for path in shipped:
        train = load_settings(path).problems.train
        assert train and train.path


@pytest.mark.parametrize("name", [["tokensqueeze"], {"name": "tokensqueeze"}, 3])
def test_a_method_that_is_no_text_is_named_like_an_unknown_one(name: object) -> None:
    with pytest.raises(SettingsError, match="is not a method; choose from tokensqueeze"):
        settings_from({"method": name, "problems": {"train": {"path": "demo:train"}}})
