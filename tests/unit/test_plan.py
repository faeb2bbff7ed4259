"""Planning: a changed setting renames the tables that depend on it, and no others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tokensqueeze.config import ProblemSource
from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.errors import SettingsError
from tokensqueeze.methods import settings_from
from tokensqueeze.pipeline.plan import RunPlan, plan_run

STAGES: tuple[str, ...] = (
    "sample",
    "verify",
    "select",
    "propose",
    "accept",
    "pair",
    "score",
    "model",
    "evaluate_base",
    "evaluate_squeezed",
)
PROBLEMS = {"problems_train", "problems_dev", "problems_test"}
EVALUATIONS = {"evaluate_base", "evaluate_squeezed"}
EVERY_STAGE = set(STAGES)


def from_stage(name: str) -> set[str]:
    """A stage of the chain and all that follows; the base model's evaluation is on no chain."""
    return set(STAGES[STAGES.index(name) :]) - {"evaluate_base"}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """Settings of a run with files of its own, written as a settings file has them."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    for split, count in (("train", 5), ("dev", 3), ("test", 4)):
        rows = [{"question": f"{split} {i}: Tom has {i} pens. How many pens?", "answer": str(i)} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(demo_model_dir(), folder / "model")
    return {
        "model": {"path": str(folder / "model")},
        "problems": {s: {"path": str(folder / f"{s}.jsonl"), "per_shard": 2} for s in ("train", "dev", "test")},
        "sampling": {"max_tokens": 100},
        "rewriter": {"name": "kl_bound"},
        "training": {"batch_size": 8, "micro_batch_tokens": 2000},
        "evaluation": {"max_tokens": 100, "token_budget": 100},
    }


def with_setting(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return values | {first: with_setting(values.get(first, {}), rest, value) if rest else value}


def names(plan: RunPlan) -> dict[str, str]:
    """The folder name of everything a run makes."""
    stages = {name: getattr(plan, name) for name in STAGES if name != "model"}
    return {
        **{name: stage.output.path.name for name, stage in stages.items()},
        "model": plan.training_dir.name,
        **{f"problems_{split}": problems.table.path.name for split, problems in plan.problem_sets.items()},
    }


def plan_of(values: dict[str, Any], store: Path = Path("tables")) -> RunPlan:
    return plan_run(settings_from(values), store)


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    old, new = names(plan_of(before)), names(plan_of(after))
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


@pytest.mark.parametrize(
    ("key", "value", "renamed"),
    [
        ("sampling.num_samples", 9, from_stage("sample")),
        ("sampling.temperature", 0.8, from_stage("sample")),
        ("sampling.top_p", 0.9, from_stage("sample")),
        ("sampling.max_tokens", 90, from_stage("sample")),
        ("sampling.seed", 1, from_stage("sample")),
        ("verifier.timeout_seconds", 7.0, from_stage("verify") | EVALUATIONS),
        ("selector.alpha", 0.3, from_stage("select")),
        ("selector", {"name": "shortest"}, from_stage("select")),
        ("rewriter.num_candidates", 5, from_stage("propose")),
        ("rewriter.temperature", 0.9, from_stage("propose")),
        ("rewriter.seed", 1, from_stage("propose")),
        ("rewriter", {"name": "none"}, from_stage("propose")),
        ("rewriter", {"name": "reliable", "num_candidates": 64}, from_stage("propose")),
        # What a draw is judged by leaves the draws as they are.
        ("rewriter.kl_bound", 0.01, from_stage("accept")),
        ("rewriter.kl_reduction", "sum", from_stage("accept")),
        ("rewriter.window_tokens", 64, from_stage("accept")),
        ("rewriter.bound_scale", "entropy", from_stage("accept")),
        # The rows have more in them, and the same decisions.
        ("rewriter.check_rest", True, {"accept"}),
        ("pairing.max_pairs_per_problem", 4, from_stage("pair")),
        ("pairing.longer_correct_ratio", 1.5, from_stage("pair")),
        ("objective.beta", 0.2, from_stage("model")),
        ("objective", {"name": "dpo"}, from_stage("model")),
        # Imitation needs no rejected side, so its pairs are others.
        ("objective", {"name": "sft"}, from_stage("pair")),
        ("training.learning_rate", 1e-5, from_stage("model")),
        ("training.seed", 1, from_stage("model")),
        # Up to rounding the same model; a training goes on with other workers than it began with.
        ("training.num_workers", 2, set()),
        ("training.checkpoint_every", 3, set()),
        ("training.export", "best", from_stage("model")),
        ("training.gpus_per_worker", 1, set()),
        ("evaluation.temperature", 0.7, EVALUATIONS),
        ("evaluation.num_samples", 3, EVALUATIONS),
        ("evaluation.seed", 1, EVALUATIONS),
        ("evaluation.token_budget", 400, set()),
        ("engine.max_batch_size", 8, EVERY_STAGE),
        ("engine.threads", 2, EVERY_STAGE),
        ("engine.gpu_memory_utilization", 0.5, set()),
        ("model.dtype", "float32", EVERY_STAGE),
        ("model.think_end", "</thought>", EVERY_STAGE),
        ("resources.workers", 4, set()),
        ("resources.cpus_per_worker", 2.0, set()),
        ("resources.gpus_per_worker", 1.0, set()),
        ("problems.instruction", "Box it.", PROBLEMS | EVERY_STAGE),
        ("problems.train.limit", 4, {"problems_train"} | from_stage("sample")),
        ("problems.train.per_shard", 3, {"problems_train"} | from_stage("sample")),
        ("problems.dev.limit", 2, {"problems_dev"} | from_stage("model")),
        ("problems.test.limit", 2, {"problems_test"} | EVALUATIONS),
        # Nothing is too long here, so what would be done with it is all the same.
        ("problems.too_long", "drop", set()),
        ("problems.train.limit", 5, set()),
    ],
)
def test_a_setting_renames_what_depends_on_it_and_no_more(
    values: dict[str, Any], key: str, value: Any, renamed: set[str]
) -> None:
    assert changed(values, with_setting(values, key, value)) == renamed


@pytest.mark.parametrize(
    ("key", "value", "renamed"),
    [
        ("rewriter.unit", "step", from_stage("propose")),
        ("rewriter.max_step_tokens", 64, from_stage("propose")),
        ("rewriter.min_reliability", 0.8, from_stage("accept")),
        ("rewriter.form", "edit_cluster", from_stage("accept")),
        ("rewriter.max_edit_distance", 0.3, from_stage("accept")),
        ("rewriter.min_form_draws", 2, from_stage("accept")),
        ("rewriter.bound_scale", "entropy", from_stage("accept")),
        ("rewriter.check_rest", True, {"accept"}),
    ],
)
def test_a_setting_of_reliable_rewriting_renames_what_depends_on_it_and_no_more(
    values: dict[str, Any], key: str, value: Any, renamed: set[str]
) -> None:
    reliable = values | {"rewriter": {"name": "reliable"}}
    assert changed(reliable, with_setting(reliable, key, value)) == renamed


@pytest.mark.parametrize(("name", "renamed"), [("model.safetensors", EVERY_STAGE), ("config.json", EVERY_STAGE)])
def test_another_model_under_the_same_path_renames_every_stage(values: dict[str, Any], name: str, renamed: set[str]) -> None:
    before = names(plan_of(values))
    path = Path(values["model"]["path"], name)
    content = bytearray(path.read_bytes())
    if name == "config.json":
        content += b"\n"
    else:
        content[-1] ^= 1
    path.write_bytes(content)
    after = names(plan_of(values))
    assert {name for name in before if before[name] != after[name]} == renamed


def test_another_chat_template_renames_everything(values: dict[str, Any], tmp_path: Path) -> None:
    other = Path(shutil.copytree(values["model"]["path"], tmp_path / "other"))
    template = other / "chat_template.jinja"
    template.write_text("Answer! " + template.read_text())
    assert changed(values, values | {"model": {"path": str(other)}}) == PROBLEMS | EVERY_STAGE


def test_another_gold_answer_renames_what_its_problems_lead_to(values: dict[str, Any]) -> None:
    before = names(plan_of(values))
    path = Path(values["problems"]["test"]["path"])
    path.write_text(path.read_text().replace('"answer": "3"', '"answer": "4"'))
    after = names(plan_of(values))
    assert {name for name in before if before[name] != after[name]} == {"problems_test"} | EVALUATIONS


def test_files_that_move_and_another_store_change_no_name(values: dict[str, Any], tmp_path: Path) -> None:
    before = names(plan_of(values, Path("a")))
    moved = (tmp_path / "inputs").rename(tmp_path / "elsewhere")
    text = json.dumps(values).replace(str(tmp_path / "inputs"), str(moved))
    assert names(plan_of(json.loads(text), tmp_path / "b")) == before


def test_the_settings_spelled_out_are_the_defaults_left_out(values: dict[str, Any]) -> None:
    whole = settings_from(values).model_dump()
    assert changed(values, whole) == set()


def test_a_method_and_its_parts_by_hand_share_their_tables(values: dict[str, Any]) -> None:
    by_name = {name: value for name, value in values.items() if name != "rewriter"} | {"method": "tokensqueeze_reliable"}
    assert changed(by_name, values | {"rewriter": {"name": "reliable"}}) == set()


def test_tables_lie_in_the_store_under_their_names_and_read_those_before_them(values: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(values, tmp_path / "store")
    assert plan.sample.output.path.parent == tmp_path / "store" / "traces"
    assert plan.verify.inputs["traces"] == plan.sample.output
    assert plan.accept.inputs["step_candidates"] == plan.propose.output
    assert plan.score.inputs["preference_pairs"] == plan.pair.output
    assert plan.evaluate_squeezed and plan.evaluate_squeezed.inputs["problems"] == plan.problem_sets["test"].table
    assert not (tmp_path / "store").exists()


def test_problems_go_through_in_shards_of_their_size(values: dict[str, Any]) -> None:
    plan = plan_of(values)
    assert [[problem.gold_answer for problem in shard] for shard in plan.problem_sets["train"].shards()] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
    ]
    assert (plan.sample.num_shards, plan.score.num_shards) == (3, 3)
    assert plan.evaluate_base and plan.evaluate_base.num_shards == 2


def test_without_test_problems_there_is_no_evaluation(values: dict[str, Any]) -> None:
    del values["problems"]["test"], values["problems"]["dev"]
    plan = plan_of(values)
    assert (plan.evaluate_base, plan.evaluate_squeezed, list(plan.problem_sets)) == (None, None, ["train"])


def test_every_input_that_cannot_be_used_is_told_at_once(values: dict[str, Any], tmp_path: Path) -> None:
    values["model"]["path"] = str(tmp_path / "no model")
    values["problems"]["dev"]["path"] = str(tmp_path / "gone.jsonl")
    Path(values["problems"]["test"]["path"]).write_text('{"question": "How many?"}\n')
    with pytest.raises(SettingsError) as caught:
        plan_of(values)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the settings have 3 mistakes:"
    assert "model.path" in lines[1] and "no such directory" in lines[1]
    assert "gone.jsonl" in lines[2]
    assert "test.jsonl" in lines[3] and "answer" in lines[3]


def test_a_problem_too_long_for_the_model_is_told_or_dropped(values: dict[str, Any]) -> None:
    path = Path(values["problems"]["train"]["path"])
    path.write_text(path.read_text() + json.dumps({"question": "How many? " * 2000, "answer": "1"}) + "\n")
    with pytest.raises(SettingsError, match=r"problems\.train: problem 'train-00006'.*problems\.too_long"):
        plan_of(values)
    plan = plan_of(with_setting(values, "problems.too_long", "drop"))
    assert plan.problem_sets["train"].dropped_too_long == ["train-00006"]
    assert len(plan.problem_sets["train"].problems) == 5


def test_the_demos_problems_need_no_file(values: dict[str, Any]) -> None:
    values["problems"] = {"train": ProblemSource(path="demo:train", limit=3).model_dump()}
    assert len(plan_of(values).problem_sets["train"].problems) == 3
