"""`tokensqueeze compare` on folders written by hand: what is set against what, when it refuses, and what it warns of."""

import json
from pathlib import Path

import pytest

from tests.unit.evaluated_folders import evaluation_folder, forced, problem, run_folder, traces
from tokensqueeze.cli import main
from tokensqueeze.errors import SettingsError, TableError
from tokensqueeze.methods import settings_from
from tokensqueeze.metrics.comparison import cut_at, largest_changes
from tokensqueeze.pipeline.compare import compare_models
from tokensqueeze.pipeline.outputs import write_outputs
from tokensqueeze.pipeline.plan import plan_run
from tokensqueeze.pipeline.planned_tables import write_problems
from tokensqueeze.reporting.comparison_data import Comparison, Section, comparison_json
from tokensqueeze.stages.run_stage import StageRecord

# Right: 2 of 2, 1 of 2, none; two samples each.
BASE = {"a": [100, 300], "b": [400, -400], "c": [-600, -200]}
# Right: 2 of 2, 2 of 2, 1 of 2.
OTHER = {"c": [50, -150], "a": [50, 150], "b": [100, 100]}


def section(comparison: Comparison) -> Section:
    (only,) = comparison.sections
    return only


def test_sets_every_further_model_against_the_first_on_the_same_problems(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "one" / "base", {"math500": traces(BASE)})
    b = evaluation_folder(tmp_path / "two" / "squeezed", {"math500": traces(OTHER)})
    found = section(compare_models([a, b]))
    assert found.title == "math500, sampled"
    assert [model.name for model in found.models] == ["base", "squeezed"]
    assert [cell.accuracy for cell in found.cells] == pytest.approx([0.5, 5 / 6])
    assert [cell.length_all for cell in found.cells] == pytest.approx([2000 / 6, 100])  # tokens, not characters
    assert found.cells[0].auc == pytest.approx((0.9 + 0.7 + 0.6) / 6)
    (against,) = found.against_first
    assert against.change.accuracy == pytest.approx(1 / 3)
    assert against.change.length_ratio == pytest.approx(600 / 2000)
    # Differences 0, ½, ½: of four sign patterns two are as far from 0. All three are shorter: 2 of 8.
    assert (against.change.accuracy_p, against.change.length_p) == (0.5, 0.25)
    assert (against.accuracy_holm, against.length_holm) == (0.5, 0.25)
    back = section(compare_models([b, a])).against_first[0].change
    assert back.accuracy == pytest.approx(-1 / 3)


def test_several_models_share_the_risk_of_a_false_alarm(tmp_path: Path) -> None:
    folders = [
        evaluation_folder(tmp_path / name, {"m": traces(outcomes)})
        for name, outcomes in (("base", BASE), ("one", OTHER), ("same", BASE), ("two", {"a": [9, 9], "b": [9, 9], "c": [9, 9]}))
    ]
    against = section(compare_models(folders)).against_first
    assert [one.change.length_p for one in against] == [0.25, 1, 0.25]
    assert [one.length_holm for one in against] == [0.75, 1, 0.75]  # 3 · ¼, then not below it


def test_a_run_holds_two_models_of_which_one_can_be_picked(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "demo", traces(BASE), traces(OTHER))
    assert [model.name for model in section(compare_models([run])).models] == [f"{run} base", f"{run} squeezed"]
    other = evaluation_folder(tmp_path / "other", {"demo": traces(OTHER)})
    found = section(compare_models([f"{run}:base", f"mine={run}:squeezed", f"own={other}"]))
    assert [model.name for model in found.models] == [f"{run} base", "mine", "own"]
    assert found.title == "test / demo, sampled"
    assert [one.change.accuracy for one in found.against_first] == pytest.approx([1 / 3, 1 / 3])
    named = section(compare_models([f"mine={run}"]))
    assert [model.name for model in named.models] == ["mine base", "mine squeezed"]


def test_a_run_that_stopped_before_its_second_evaluation_is_one_model(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "demo", traces(BASE), None)
    other = evaluation_folder(tmp_path / "other", {"test": traces(OTHER)})
    assert [model.name for model in section(compare_models([run, other])).models] == [f"{run} base", "other"]
    with pytest.raises(TableError, match=r"the run has evaluated no squeezed model; set problems.test"):
        compare_models([f"{run}:squeezed", other])


def test_each_shared_decoding_is_a_section_of_its_own(tmp_path: Path) -> None:
    both = [*traces(BASE), *traces({"a": [7], "b": [7], "c": [-7]}, "greedy")]
    sections = compare_models([run_folder(tmp_path / "demo", both, both)]).sections
    assert [(one.title, one.cells[0].num_samples) for one in sections] == [("test, sampled", 6), ("test, greedy", 3)]


def test_models_without_a_shared_decoding_are_compared_with_a_warning(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE)})
    b = evaluation_folder(tmp_path / "b", {"m": traces({"a": [7], "b": [7], "c": [-7]}, "greedy")})
    found = section(compare_models([a, b]))
    assert found.title == "m"
    assert "decoded differently (a: sampled; b: greedy)" in found.warnings[0]


def test_several_benchmarks_are_a_section_each_and_what_only_one_model_has_is_named(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"aime24": traces(BASE), "math500": traces(BASE), "gsm8k": traces(BASE)})
    b = evaluation_folder(tmp_path / "b", {"math500": traces(OTHER), "aime24": traces(OTHER)})
    found = compare_models([a, b])
    assert [one.title for one in found.sections] == ["aime24, sampled", "math500, sampled"]
    assert list(found.notes) == ["gsm8k is left out: not evaluated for b."]
    assert section(compare_models([a, b], benchmark="math500")).title == "math500, sampled"
    with pytest.raises(TableError, match="--benchmark gsm8k: not evaluated; b has math500, aime24"):
        compare_models([a, b], benchmark="gsm8k")
    c = evaluation_folder(tmp_path / "c", {"x": traces(OTHER), "y": traces(OTHER)})
    with pytest.raises(
        TableError, match=r"no benchmark that all models were evaluated on \(a: aime24, math500, gsm8k; c: x, y\)"
    ):
        compare_models([a, c])


def test_refuses_problems_that_differ_and_says_how_many_and_which(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE | {"d": [5], "e": [5]})})
    asked = [problem("a"), problem("b", gold_answer="43"), problem("c", question="Really?"), problem("f")]
    b = evaluation_folder(tmp_path / "b", {"m": traces(OTHER | {"f": [5]})}, problems=asked)
    with pytest.raises(TableError) as caught:
        compare_models([a, b])
    assert str(caught.value) == (
        "m: the problems of a and b differ: 2 only in a, 1 only in b, 2 with another question or gold answer, such as 'b'; "
        "give --common to compare on the 1 that they share"
    )
    found = section(compare_models([a, b], common=True))
    assert [cell.num_problems for cell in found.cells] == [1, 1]
    assert found.warnings[0] == "Compared on the 1 problem that all models share, of 5."


def test_refuses_evaluations_without_a_problem_in_common(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces({"a": [5], "b": [5]})})
    b = evaluation_folder(tmp_path / "b", {"m": traces({"c": [5], "d": [5]})})
    with pytest.raises(TableError, match=r"2 only in a, 2 only in b, .* evaluate both on the same file"):
        compare_models([a, b])
    with pytest.raises(TableError, match="m: no problem in common"):
        compare_models([a, b], common=True)


def test_problems_that_an_older_run_does_not_name_are_told_apart_by_id_alone(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "old", traces(BASE), traces(OTHER), with_problems=False)
    found = section(compare_models([run]))
    assert "has no table of problems, so only their ids could be checked" in found.warnings[0]
    assert found.problems is None and found.levels == [[], []]


def test_different_token_limits_need_a_budget_that_cuts_both(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE)})
    b = evaluation_folder(tmp_path / "b", {"m": traces(BASE)}, max_tokens=350)
    for budget in (None, 400):
        with pytest.raises(TableError, match=r"different max_tokens \(a 1,000, b 350\), .* give --budget 350 or less"):
            compare_models([a, b], token_budget=budget)
    found = section(compare_models([a, b], token_budget=300))
    # a stays right twice, b's 400 and c's 600 are cut at 300.
    for cell in found.cells:
        assert cell.accuracy == pytest.approx(2 / 6)
        assert cell.length_all == pytest.approx((100 + 300 + 300 + 300 + 300 + 200) / 6)
        assert cell.truncated == pytest.approx(3 / 6)
    assert found.token_budget == 300
    assert "every completion is cut at 300 tokens" in found.warnings[0]


def test_what_is_not_known_of_imported_traces_is_said_and_stops_nothing(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE)})
    imported = evaluation_folder(tmp_path / "b", {"m": traces(BASE)}, max_tokens=None, temperature=None, top_p=None)
    found = section(compare_models([a, imported]))
    assert "Not known with which max_tokens b was sampled" in found.warnings[0]
    assert "a: temperature 0.6, top_p 0.95; b: sampling not known" in found.warnings[1]
    settings = found.models[1].settings
    assert (settings["decoding"], settings["max_tokens"]) == ("sampling not known", "not known")


def test_cutting_leaves_what_a_lower_limit_would_have_left() -> None:
    right, wrong, longest = cut_at(traces({"a": [100, -100, 104]}), 100)
    assert (right.verdict, right.num_tokens, right.finish_reason) == ("correct", 100, "stop")
    assert wrong.verdict == "incorrect"
    # 99 of its 104 tokens were thinking, so one token of the answer is left.
    assert (longest.num_tokens, longest.thinking_tokens, longest.answer_tokens) == (100, 99, 1)
    assert (longest.verdict, longest.verdict_cause, longest.finish_reason) == ("incorrect", "truncated", "length")


def test_a_budget_sets_the_auc_and_different_ones_fall_to_the_smallest(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE)}, token_budget=2000)
    b = evaluation_folder(tmp_path / "b", {"m": traces(BASE)}, token_budget=500)
    found = section(compare_models([a, b]))
    assert "different token budgets (a 2,000, b 500): the AUC is over 500 for all" in found.warnings[0]
    assert found.cells[0].auc == pytest.approx((0.8 + 0.4 + 0.2) / 6)
    assert section(compare_models([a, b], token_budget=1000)).cells[0].auc == pytest.approx((0.9 + 0.7 + 0.6) / 6)


def test_warns_of_other_sampling_of_few_problems_and_of_what_could_not_be_verified(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE)})
    fewer = [t for t in traces(OTHER) if t.sample_index == 0 or t.problem_id == "a"]
    unverified = [type(t)(**{**vars(t), "verdict": "unverifiable"}) for t in fewer[:1]] + fewer[1:]
    b = evaluation_folder(tmp_path / "b", {"m": unverified}, temperature=0.9)
    assert list(section(compare_models([a, b])).warnings) == [
        "Sampled differently (a: temperature 0.6, top_p 0.95; b: temperature 0.9, top_p 0.95): a difference may be that of the "
        "sampling.",
        "Samples per problem differ (a 2, b 1 to 2): fair on average, but the fewer are, the more chance is in them.",
        "Only 3 problems: intervals are rough, and only large differences can show.",
        "25.0 % of b's completions could not be verified, and count as not correct.",
    ]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "one" / "math", {"m": traces(BASE)})
    b = evaluation_folder(tmp_path / "two" / "math", {"m": traces(OTHER)})
    assert [model.name for model in section(compare_models([a, b])).models] == [a, b]


def test_a_model_under_two_names_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE)})
    found = section(compare_models([a, f"again={a}"]))
    (against,) = found.against_first
    assert (against.change.accuracy, against.change.length_ratio, against.change.accuracy_p) == (0, 1, 1)
    assert found.largest_changes == []


def test_the_same_model_twice_and_one_model_alone_are_mistakes(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE)})
    with pytest.raises(SettingsError, match="a is named twice; NAME=FOLDER gives it another name"):
        compare_models([a, f"{a}/../a"])
    with pytest.raises(SettingsError, match=r"one model \(a\); name at least two"):
        compare_models([a])
    run = run_folder(tmp_path / "demo", traces(BASE), traces(OTHER))
    with pytest.raises(SettingsError, match="demo base is named twice"):
        compare_models([run, f"{run}:base"])
    with pytest.raises(SettingsError, match="one model"):
        compare_models([f"{run}:squeezed"])


def test_folders_without_a_finished_evaluation_are_named(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", {"m": traces(BASE)})
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="nowhere: no such folder; give a folder that `tokensqueeze evaluate`"):
        compare_models([a, str(tmp_path / "nowhere")])
    with pytest.raises(TableError, match=r"empty: neither evaluation.json nor run.json in it"):
        compare_models([a, str(tmp_path / "empty")])
    with pytest.raises(TableError, match="a holds one model; only the folder of a run has :base"):
        compare_models([f"{a}:base", a])
    b = Path(evaluation_folder(tmp_path / "b", {"m": traces(OTHER)}))
    (b / "tables/evaluation_m/0123456789abcdef/manifest.json").unlink()
    with pytest.raises(TableError, match=r"manifest.json: no such file; the stage that makes it has not finished"):
        compare_models([a, str(b)])
    (b / "evaluation.json").write_text('{"base": {}, "squeezed": {}}')
    with pytest.raises(TableError, match=r"evaluation.json: no 'model' in it; it was not written by"):
        compare_models([a, str(b)])
    for text in ("3", '{"model": "x", "benchmarks": []}', '{"model": "x", "benchmarks": {"math": {}}}'):
        (b / "evaluation.json").write_text(text)
        with pytest.raises(TableError, match=r"evaluation.json: not a"):
            compare_models([a, str(b)])
    (b / "evaluation.json").write_bytes(b"\xff\xfe")
    with pytest.raises(TableError, match=r"evaluation.json: not valid JSON"):
        compare_models([a, str(b)])
    (b / "evaluation.json").write_text('{"model": "x", "benchmarks": {}}')
    with pytest.raises(TableError, match=r"evaluation.json has no benchmark"):
        compare_models([a, str(b)])
    (b / "evaluation.json").write_text("{")
    with pytest.raises(TableError, match="not valid JSON"):
        compare_models([a, str(b)])
    empty = evaluation_folder(tmp_path / "none", {"m": []}, problems=[problem("a")])
    with pytest.raises(TableError, match="no traces; evaluate none on at least one problem"):
        compare_models([a, empty])


def test_the_problems_that_moved_most_come_first_and_those_that_did_not_are_left_out() -> None:
    first = traces({"a": [10, -10], "b": [10, 10], "c": [10, 10], "d": [-10, -10], "e": [10, 10]})
    second = traces({"a": [10, 10], "b": [-10, -10], "c": [90, 90], "d": [-10, -10], "e": [-1, -1]})
    moved = largest_changes([first, second], 10)
    # b and e both fell by all: e's length changed more.
    assert [(one.problem_id, one.pass_rates, one.lengths) for one in moved] == [
        ("e", [1, 0], [10, 1]),
        ("b", [1, 0], [10, 10]),
        ("a", [0.5, 1], [10, 10]),
    ]
    assert [one.problem_id for one in largest_changes([first, second], 1)] == ["e"]


def test_the_json_holds_every_figure_and_no_nan(tmp_path: Path) -> None:
    hopeless = traces({"a": [-10]})
    a = evaluation_folder(tmp_path / "a", {"m": hopeless}, forced_traces=forced({"a": [-5]}, 8))
    b = evaluation_folder(tmp_path / "b", {"m": hopeless})
    written = comparison_json(compare_models([a, b]))
    again = json.loads(json.dumps(written, allow_nan=False))
    assert again == written
    (only,) = again["sections"]
    cell = only["models"][0]["cell"]
    assert (cell["accuracy"], cell["accuracy_ci"], cell["length_correct"], cell["length_correct_ci"]) == (0, None, None, None)
    assert cell["pass_at_k"] == {"1": {"value": 0, "ci": None}}
    assert only["models"][0]["forced"][0]["thinking_budget"] == 8
    assert only["against_first"]["b"]["change"]["accuracy_p"] is None
    assert only["difficulty"] is None


def test_the_command_prints_the_figures_and_writes_page_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation_folder(tmp_path / "base", {"math500": traces(BASE)})
    evaluation_folder(tmp_path / "short", {"math500": traces(OTHER)}, temperature=1.0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["compare", "base", "[bold]=short", "--output", "out/c.html", "--json", "out/c.json", "--budget", "500"])
    assert left.value.code in (0, None)
    printed = capsys.readouterr().out
    # AUC of the base over 500 tokens: (0.8 + 0.4 + 0.2) / 6.
    for expected in (
        "math500, sampled",
        "[bold]",
        "50.0",
        "83.3",
        "+33.3",
        "0.300",
        "23.3",
        "! Sampled differently",
        "Paired by",
    ):
        assert expected in printed
    assert "p, Holm" not in printed
    assert (tmp_path / "out/c.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "out/c.json").read_text())["sections"][0]["token_budget"] == 500


def test_a_mistake_is_one_line_and_leaves_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["compare", "here", "there"])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("tokensqueeze: here: no such folder") and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_a_run_writes_of_its_evaluations_can_be_compared(tmp_path: Path) -> None:
    problems = {"train": {"path": "demo:train", "limit": 1}, "test": {"path": "demo:test", "limit": 3}}
    plan = plan_run(settings_from({"model": {"path": "demo"}, "problems": problems}), tmp_path / "tables")
    asked = plan.problem_sets["test"]
    write_problems(asked)
    assert plan.evaluate_base and plan.evaluate_squeezed
    for stage, tokens in ((plan.evaluate_base, 200), (plan.evaluate_squeezed, 50)):
        stage.output.write_part(0, traces({one.problem_id: [tokens, -tokens] for one in asked.problems}), {})
        stage.output.complete({"num_shards": 1})
    done = [StageRecord(name, 6, 750, 1.0, 1.0, 1, {}, False, 0) for name in ("evaluation_base", "evaluation_squeezed")]
    write_outputs(plan, done, tmp_path / "run")
    found = section(compare_models([str(tmp_path / "run")]))
    assert found.against_first[0].change.length_ratio == 0.25
    assert found.problems == {one.problem_id: one for one in asked.problems}
    assert not [warning for warning in found.warnings if "table of problems" in warning]
