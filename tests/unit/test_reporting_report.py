"""The report page, rendered from a made-up run over the demo's world, and read back as a reader's browser would."""

import random
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tokensqueeze.config import KLBound, Reliable, RewriterSettings, Settings
from tokensqueeze.demo import world
from tokensqueeze.errors import StorageError
from tokensqueeze.methods import METHODS, settings_from
from tokensqueeze.metrics.bootstrap import mean_interval
from tokensqueeze.metrics.evaluation import evaluation_json
from tokensqueeze.reporting.charts import Chart
from tokensqueeze.reporting.report_data import ReportData, StageRecord
from tokensqueeze.reporting.run_charts import evaluation_charts, refinement_charts, training_charts
from tokensqueeze.reporting.run_report import report_html, write_report
from tokensqueeze.schema import (
    Decoding,
    EvaluationTrace,
    RefinedTrace,
    ScoredPair,
    SelectedTrace,
    StepDecision,
    VerifiedTrace,
    to_row,
)

BUDGET = 400
VOID_TAGS = {"meta", "link", "br", "img", "hr", "input", "path", "use", "rect"}
EVIL = "<script>alert('a')</script><img src=x onerror=alert(1)>&copy;\"'"


@pytest.fixture(scope="module")
def data() -> ReportData:
    return made_up_run()


@pytest.fixture(scope="module")
def page(data: ReportData) -> "Page":
    return Page.of(report_html(data))


def test_shows_the_change_that_the_evaluation_holds(data: ReportData, page: "Page") -> None:
    assert data.evaluation is not None
    change = data.evaluation["change"]["sampled"]
    share, gain, error = 100 * change["length_ratio"], 100 * change["accuracy"], 100 * change["accuracy_se"]
    assert f"{share:.0f} % of the tokens, {gain:+.1f} points (±{error:.1f})" in page.text


def test_shows_the_interval_and_the_p_value_of_each_change(data: ReportData, page: "Page") -> None:
    assert data.evaluation is not None
    change = data.evaluation["change"]["sampled"]
    low, high = change["length_ratio_ci"]
    assert f"95 % interval {low:.3f}–{high:.3f}, p < 0.001" in page.text
    low, high = (100 * edge for edge in change["accuracy_ci"])
    assert f"95 % interval [{low:+.1f}, {high:+.1f}], p" in page.text
    rows = {row[0]: row[1:] for row in page.tables["evaluation-table"]}
    assert rows["p, sampled"][2] == "< 0.001"


def test_the_budget_chart_has_a_band_that_ends_at_the_interval_of_the_accuracy(data: ReportData) -> None:
    chart = next(chart for chart in evaluation_charts(data) if chart.name == "budget")
    assert chart.headers[1:4] == ("base, sampled", "low", "high")
    within = [
        [t.verdict == "correct" and t.num_tokens <= BUDGET for t in data.base_evaluation if t.problem_id == problem_id]
        for problem_id in sorted({t.problem_id for t in data.base_evaluation})
    ]
    shares = [fmean(own[:-1]) for own in within]  # the last one is the greedy answer
    assert list(chart.rows[-1][1:4]) == pytest.approx([fmean(shares), *(mean_interval(shares) or [])])


def test_the_table_holds_every_accuracy_and_length_of_the_evaluation(data: ReportData, page: "Page") -> None:
    assert data.evaluation is not None
    rows = {row[0]: row[1:] for row in page.tables["evaluation-table"]}
    for model in ("base", "squeezed"):
        for decoding in ("greedy", "sampled"):
            cell, shown = data.evaluation[model][decoding], rows[f"{model}, {decoding}"]
            assert shown[0] == f"{100 * cell['accuracy']:.1f} ± {100 * cell['accuracy_se']:.1f}"
            assert shown[2] == f"{cell['length_all']:.1f} ± {cell['length_all_se']:.1f}"
            assert shown[5] == f"{100 * cell['auc']:.1f} ± {100 * cell['auc_se']:.1f}"


def test_counts_what_the_tables_hold(data: ReportData, page: "Page") -> None:
    correct = sum(trace.verdict == "correct" for trace in data.verified_traces)
    section = page.sections["data"]
    for count in (24, len(data.verified_traces), correct, len(data.selected_traces), len(data.pairs)):
        assert re.search(rf"(?<!\d){count:,}(?!\d)", section)
    assert page.tables["drops"] == [["no correct trace", "2"], ["no incorrect trace", "3"]]


def test_counts_the_rewritten_steps(data: ReportData, page: "Page") -> None:
    decisions = [decision for trace in data.refined_traces for decision in trace.decisions]
    rewritten = sum(decision.kept_text != decision.original_text for decision in decisions)
    assert f"{rewritten} steps; " in page.sections["refinement"]
    assert f"{100 * rewritten / len(decisions):.1f} %" in page.sections["refinement"]


def test_tells_what_training_used_and_left_out_and_what_it_took(page: "Page") -> None:
    section = page.sections["training"]
    assert "320pairs used4 left out: both sides the same17 left out: too long" in section
    # 80 steps of 4,000 tokens in 1.25 seconds each.
    assert "80optimiser steps" in section
    assert "320,000tokens read3,200 per second" in section
    assert "1 min 40 sin steps" in section
    assert "1.5 GiBmost memory of a worker" in section
    assert "step 80: chosen log-probabilities <fall>" in section


def test_draws_loss_rewards_norm_preference_and_the_dev_problems_over_the_steps(data: ReportData, page: "Page") -> None:
    drawn = {chart.name: chart for chart in training_charts(data)}
    assert list(drawn) == ["loss", "logps", "rewards", "preference", "gradient", "dev-accuracy", "dev-length"]
    assert {f"chart-{name}" for name in drawn} <= set(page.ids)
    assert drawn["rewards"].headers == ("optimiser step", "chosen", "rejected", "margin")
    assert drawn["rewards"].rows[-1] == (80, 0.8, -1.2, 2.0)
    assert drawn["gradient"].rows[-1] == (80, 1.0)


def test_log_of_an_objective_without_margin_has_no_chart_of_rewards(data: ReportData) -> None:
    absent = ("chosen_reward", "rejected_reward", "margin", "preference_accuracy", "ref_chosen_logps")
    log = [{**row, **dict.fromkeys(absent)} if "loss" in row else row for row in data.training_log]
    names = [chart.name for chart in training_charts(replace(data, training_log=log))]
    assert names == ["loss", "logps", "gradient", "dev-accuracy", "dev-length"]


def test_marks_the_words_that_a_step_lost(data: ReportData) -> None:
    decision = StepDecision(0, "So 47 + 38 = 85.\n\n", "47 + 38 = 85.\n\n", 9, 8, 0.001, None, 4, 2)
    trace = RefinedTrace("t", "p", "…", [1] * 20, 20, "…", 21, [decision])
    html = report_html(replace(stopped_before_training(data), refined_traces=[trace]))
    assert "<del>So </del>" in html
    assert "−1 token<" in html


STAYED = StepDecision(
    0,
    "So 47 + 38 = 85.\n\n",
    "So 47 + 38 = 85.\n\n",
    9,
    9,
    0.0,
    None,
    4,
    2,
    rejected_text="That is 85.\n\n",
    rejected_tokens=5,
    rejected_kl=0.0062,
)
REWRITTEN = replace(STAYED, step_index=1, kept_text="47 + 38 = 85.\n\n", kept_tokens=8, kl=0.001)


def test_shows_accepted_and_turned_down_candidates_with_their_kl(data: ReportData) -> None:
    html = report_html(refined_run(data, [STAYED, replace(REWRITTEN, rejected_kl=0.031)], KLBound()))
    section = Page.of(html).sections["refinement"]
    assert "<mark>So 47 + 38 = </mark>85." in html and "<mark>That is </mark>85." in html
    assert "stays−4 tokens if takenKL ≥ 0.0062over the KL bound" in section
    assert "−1 tokenKL 0.001 " in section
    assert "tried too, turned downThat is 85. −4 tokens if takenKL ≥ 0.031over the KL bound" in section
    assert "1steps stayed though a candidate was tried1 over the KL bound" in section
    assert "reliability" not in section


def test_shows_why_the_reliable_rewriter_turned_a_candidate_down(data: ReportData) -> None:
    unreliable = replace(STAYED, rejected_kl=0.0012, rejected_reliability=0.62)
    seldom = replace(STAYED, step_index=1, rejected_kl=0.0013, rejected_reliability=0.83)
    run = refined_run(data, [unreliable, seldom, replace(STAYED, step_index=2)], Reliable(min_reliability=0.8))
    section = Page.of(report_html(run)).sections["refinement"]
    assert "KL 0.0012reliability 0.62form not reliable enough" in section
    assert "KL 0.0013reliability 0.83form drawn too seldom" in section
    assert "KL ≥ 0.0062over the KL bound" in section
    assert "3steps stayed though a candidate was tried" in section


def test_a_run_that_accepted_nothing_says_so_and_shows_what_it_turned_down(data: ReportData) -> None:
    section = Page.of(report_html(refined_run(data, [STAYED], KLBound()))).sections["refinement"]
    assert "No candidate passed for any step" in section
    assert "KL ≥ 0.0062" in section
    assert "tokens saved" not in section


def test_the_kl_chart_has_accepted_left_and_turned_down_right_of_the_bound(data: ReportData) -> None:
    decisions = [
        replace(REWRITTEN, kl=0.00499),
        replace(REWRITTEN, kl=0.0003, rejected_kl=0.00501),
        replace(STAYED, rejected_kl=0.04),
        replace(STAYED, rejected_kl=0.0001, rejected_reliability=0.3),
    ]
    chart = charts(refined_run(data, decisions, Reliable(kl_bound=0.005)))["kl"]
    assert chart.headers[1:] == ("accepted: 2", "turned down: 3")
    assert ">bound 0.005</text>" in chart.svg
    below = [row for row in chart.rows if float(str(row[0]).split(" to ")[1]) <= 0.005]
    above = [row for row in chart.rows if float(str(row[0]).split(" to ")[0]) >= 0.005]
    assert len(below) + len(above) == len(chart.rows)
    assert [row[1:] for row in below] == [(0.5, 0.0), (0.5, 0.0)]
    # 0.00501, and the 0.0062 that the first one has.
    assert [row[2] for row in above] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_a_bound_of_its_own_for_each_step_is_no_line_in_the_chart(data: ReportData) -> None:
    scaled = refined_run(data, [REWRITTEN, STAYED], KLBound(kl_bound=0.02, bound_scale="entropy"))
    chart = charts(scaled)["kl"]
    assert ">bound" not in chart.svg
    assert "0.02 of the entropy" in chart.note


def test_the_reliability_chart_sets_turned_down_forms_against_kept_ones(data: ReportData) -> None:
    decisions = [
        replace(REWRITTEN, reliability=0.97, rejected_text=None),
        replace(STAYED, reliability=0.92, rejected_kl=0.001, rejected_reliability=0.31),
        replace(STAYED, reliability=0.98),
    ]
    chart = charts(refined_run(data, decisions, Reliable()))["reliability"]
    assert chart.headers[1:] == ("kept: 3", "turned down: 1")
    assert [(row[0], row[1], row[2]) for row in chart.rows] == [
        ("0.3 to 0.35", 0.0, 1.0),
        ("0.9 to 0.95", pytest.approx(1 / 3), 0.0),
        ("0.95 to 1", pytest.approx(2 / 3), 0.0),
    ]


def test_counts_rewritten_steps_that_exceed_the_bound_on_the_whole_rest(data: ReportData) -> None:
    decisions = [
        replace(REWRITTEN, rest_kl=0.004, rest_passes=True),
        replace(REWRITTEN, rest_kl=0.007, rest_passes=False),
        replace(REWRITTEN, rest_kl=0.0002, rest_passes=True),
        STAYED,
    ]
    run = refined_run(data, decisions, KLBound(check_rest=True, window_tokens=64))
    section = Page.of(report_html(run)).sections["refinement"]
    assert (
        "33.3 %of the rewritten steps exceed the bound on the whole rest1 of 3; all keep it on the window of 64 tokens"
        in section
    )
    assert "on the whole rest 0.007, over the bound" in section
    assert "on the whole rest 0.004<" in report_html(run)
    chart = charts(run)["rest-kl"]
    over = [row for row in chart.rows if float(str(row[0]).split(" to ")[0]) >= 0.005]
    assert [row[1:] for row in over] == [(0.0, pytest.approx(1 / 3))]
    assert "the same 3 accepted rewritings" in chart.note


def test_says_nothing_of_the_rest_where_it_was_not_asked_for(data: ReportData) -> None:
    run = refined_run(data, [REWRITTEN, STAYED], KLBound())
    assert "whole rest" not in Page.of(report_html(run)).sections["refinement"]
    assert "rest-kl" not in charts(run)


def test_rows_from_before_candidates_were_recorded_still_make_a_page(data: ReportData) -> None:
    fields = {name: value for name, value in vars(REWRITTEN).items() if not name.startswith(("rejected", "rest"))}
    old = to_row(StepDecision, fields)
    for rewriter in (KLBound(check_rest=True), Reliable(check_rest=True)):
        page = Page.of(report_html(refined_run(data, [old, replace(old, kept_text=old.original_text)], rewriter)))
        assert "1 step; 0 became longer" in page.sections["refinement"]
        assert "turned down" not in page.sections["refinement"]
        assert "unchanged" in page.sections["refinement"]


@pytest.mark.parametrize("rewriter", [KLBound(check_rest=True), Reliable(check_rest=True)])
def test_a_kl_that_is_no_number_does_not_cost_the_page(data: ReportData, rewriter: RewriterSettings) -> None:
    nan, inf = float("nan"), float("inf")
    decisions = [
        replace(REWRITTEN, kl=nan, rejected_kl=inf, rest_kl=nan, rest_passes=True),
        replace(REWRITTEN, kl=0.001, rejected_kl=nan, rest_kl=inf, rest_passes=False),
        replace(STAYED, rejected_kl=nan),
    ]
    run = refined_run(data, decisions, rewriter)
    assert "KL nan" in Page.of(report_html(run)).sections["refinement"]
    assert charts(run)["kl"].headers[1:] == ("accepted: 1",)


@pytest.mark.parametrize("rewriter", [KLBound(), Reliable()])
def test_a_refinement_without_any_step_draws_nothing(data: ReportData, rewriter: RewriterSettings) -> None:
    assert charts(refined_run(data, [], rewriter)) == {}
    assert charts(replace(refined_run(data, [], rewriter), refined_traces=[])) == {}
    assert Page.of(report_html(refined_run(data, [], rewriter))).unclosed == []


def test_shows_held_out_answers_of_both_models(data: ReportData, page: "Page") -> None:
    assert "Only the base is right" in page.sections["answers"]
    assert any(question in page.sections["answers"] for question in data.questions.values())


def test_loads_nothing_from_anywhere(page: "Page") -> None:
    assert not re.search(r"https?://", page.html)
    assert all(target.startswith(("#", "data:")) for target in page.targets)
    assert {"script", "iframe", "img", "object"}.isdisjoint(page.tags)
    assert "@import" not in page.html


def test_text_of_a_trace_is_text_and_never_markup(data: ReportData) -> None:
    evil_eval = [replace(trace, text=EVIL) for trace in data.base_evaluation]
    decision = StepDecision(0, EVIL, EVIL[::-1], 9, 8, 0.001, None, 4, 2, EVIL * 2, 7, 0.006)
    evil_refined = RefinedTrace("t", "p", EVIL, [1] * 20, 20, EVIL, 21, [decision])
    questions = dict.fromkeys(data.questions, EVIL)
    html = report_html(replace(data, base_evaluation=evil_eval, refined_traces=[evil_refined], questions=questions, title=EVIL))
    read = Page.of(html)
    assert {"script", "img"}.isdisjoint(read.tags)
    assert EVIL in read.text


def test_every_element_is_closed_and_every_id_is_there_once(page: "Page") -> None:
    assert page.unclosed == []
    assert len(page.ids) == len(set(page.ids))


def test_every_link_within_the_page_has_a_target(page: "Page") -> None:
    referenced = {target[1:] for target in page.targets if target.startswith("#")}
    referenced |= set(re.findall(r"url\(#([^)]+)\)", page.html)) | set(re.findall(r'aria-labelledby="([^"]+)"', page.html))
    assert referenced <= set(page.ids)


def test_every_chart_has_a_title_and_its_numbers(page: "Page") -> None:
    assert page.tags.count("figure") >= 11
    assert page.tags.count("svg") == page.tags.count("figure")
    named = re.findall(r'<svg [^>]*role="img" aria-labelledby="[^"]+"><title', page.html)
    assert len(named) == page.tags.count("svg")
    assert page.html.count("<summary>Numbers") == page.tags.count("svg")


def test_the_same_data_give_the_same_bytes(data: ReportData, page: "Page") -> None:
    assert report_html(data) == page.html


def test_stays_small_for_long_traces_and_long_logs(data: ReportData) -> None:
    long = [replace(trace, text="step\n\n" * 20_000 + trace.text, num_tokens=40_000) for trace in data.base_evaluation]
    log = [{**row, "step": step} for step in range(1, 20_001) for row in data.training_log[1:3]]
    assert len(report_html(replace(data, base_evaluation=long, training_log=log)).encode()) < 1_500_000


def test_says_why_there_is_no_evaluation_without_held_out_problems(data: ReportData) -> None:
    problems = data.settings.problems.model_copy(update={"test": None})
    settings = data.settings.model_copy(update={"problems": problems})
    read = Page.of(report_html(stopped_before_training(replace(data, settings=settings))))
    assert "No held-out problems are named: set problems.test" in read.text
    assert "% of the tokens" not in read.text


def test_says_how_far_a_stopped_run_has_come(data: ReportData) -> None:
    stopped = replace(
        stopped_before_evaluation(data),
        stages=data.stages[:2],
        selected_traces=(),
        refined_traces=(),
        pairs=(),
        drop_counts={},
        training_log=(),
    )
    read = Page.of(report_html(stopped))
    for section in ("answers", "data", "refinement", "training"):
        assert "The run has gone as far as “verify traces”" in read.sections[section]


def test_a_run_without_any_stage_still_has_a_page(data: ReportData) -> None:
    empty = replace(
        stopped_before_evaluation(data),
        stages=(),
        verified_traces=(),
        selected_traces=(),
        refined_traces=(),
        pairs=(),
        training_log=(),
        drop_counts={},
    )
    read = Page.of(report_html(empty))
    assert "No stage has finished" in read.sections["time"]
    assert read.unclosed == []


def test_says_that_a_method_without_rewriter_rewrites_nothing(data: ReportData) -> None:
    settings = settings_of("shortest_sft")
    no_rejected = {f"rejected{name}": None for name in ("", "_token_ids", "_num_tokens", "_trace_id")}
    pairs = [replace(pair, **no_rejected, ref_rejected_logps=None) for pair in data.pairs]
    absent_keys = ("dpo_loss", "rejected_logps", "ref_rejected_logps", "margin", "preference_accuracy")
    log = [{**row, **dict.fromkeys(absent_keys)} if "loss" in row else row for row in data.training_log]
    plain = replace(data, settings=settings, pairs=pairs, training_log=log, refined_traces=(), method_name="shortest_sft")
    read = Page.of(report_html(plain))
    assert "rewriter “none”" in read.sections["refinement"]
    assert "no rejected side" in read.sections["training"]
    assert "chart-preference" not in read.ids
    assert "chart-logps" in read.ids


def test_splits_by_difficulty_only_what_was_sampled_twice_or_more(data: ReportData) -> None:
    once = [trace for trace in data.base_evaluation if trace.sample_index == 0]
    assert "difficulty-accuracy" in [chart.name for chart in evaluation_charts(data)]
    assert "difficulty-accuracy" not in [chart.name for chart in evaluation_charts(replace(data, base_evaluation=once))]


def test_the_hardest_problems_are_measured_on_samples_that_did_not_sort_them(data: ReportData) -> None:
    sampled = [trace for trace in data.base_evaluation if trace.decoding == "sampled"]
    even_right = {trace.problem_id for trace in sampled if trace.sample_index in (0, 2) and trace.verdict == "correct"}
    odd = [trace for trace in sampled if trace.sample_index in (1, 3) and trace.problem_id not in even_right]
    chart = next(chart for chart in evaluation_charts(data) if chart.name == "difficulty-accuracy")
    assert chart.rows[0][0] == f"none\nn = {len(odd) // 2}"
    assert chart.rows[0][1] == pytest.approx(sum(trace.verdict == "correct" for trace in odd) / len(odd))


def test_warns_that_the_demo_predicts_nothing(data: ReportData, page: "Page") -> None:
    assert "Its percentages predict nothing about other models." in page.text
    model = data.settings.model.model_copy(update={"path": "models/own"})
    settings = data.settings.model_copy(update={"model": model})
    other = replace(stopped_before_training(data), settings=settings)
    assert "predict nothing" not in Page.of(report_html(other)).text


def test_lists_every_setting(data: ReportData, page: "Page") -> None:
    for key in ("sampling.num_samples", "rewriter.min_reliability", "problems.train.path", "objective.beta", "method"):
        assert f"<code>{key}</code>" in page.html


def test_writes_the_page_to_a_file(data: ReportData, page: "Page", tmp_path: Path) -> None:
    write_report(data, tmp_path / "deep" / "report.html")
    assert (tmp_path / "deep" / "report.html").read_text() == page.html


def test_a_path_that_is_taken_by_a_folder_is_a_storage_error(data: ReportData, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"report\.html"):
        write_report(stopped_before_training(data), tmp_path / "report.html")


@dataclass
class Page(HTMLParser):
    """What a page says: its text by section, tables by id, ids, tags, and where it points."""

    html: str
    text: str = ""
    sections: dict[str, str] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)
    _section: str = ""
    _table: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def of(cls, html: str) -> "Page":
        page = cls(html)
        page.feed(html)
        page.close()
        page.text = re.sub(r"\s+", " ", page.text)
        page.sections = {name: re.sub(r"\s+", " ", text) for name, text in page.sections.items()}
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.targets += [values[name] for name in ("href", "src", "xlink:href", "srcset", "action") if name in values]
        if tag not in VOID_TAGS:
            self.unclosed.append(tag)
        if tag == "section":
            self._section = values.get("id", "")
        elif tag == "table":
            self._table = values.get("id", "")
        elif tag == "tr" and self._table:
            self.tables.setdefault(self._table, []).append([])
        elif tag in ("td", "th") and self._table:
            self.tables[self._table][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID_TAGS:
            self.unclosed.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.unclosed[-1] == tag, f"</{tag}> closes <{self.unclosed[-1]}>"
            self.unclosed.pop()
        self._section = "" if tag == "section" else self._section
        self._table = "" if tag == "table" else self._table

    def handle_data(self, data: str) -> None:
        if self.unclosed and self.unclosed[-1] == "style":
            return
        self.text += data
        if self._section:
            self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._table and self.tables.get(self._table) and self.tables[self._table][-1]:
            self.tables[self._table][-1][-1] += data.strip()


def settings_of(method: str) -> Settings:
    problems = {name: {"path": f"demo:{name}"} for name in ("train", "dev", "test")}
    return settings_from(
        {
            "method": method,
            "problems": problems,
            "sampling": {"num_samples": 8, "temperature": 0.7, "max_tokens": 384},
            "evaluation": {"num_samples": 4, "temperature": 0.7, "max_tokens": 384, "token_budget": BUDGET},
        }
    )


def refined_run(data: ReportData, decisions: list[StepDecision], rewriter: RewriterSettings) -> ReportData:
    """A run that got as far as refining one trace, with these decisions."""
    settings = data.settings.model_copy(update={"rewriter": rewriter})
    saved = sum(decision.original_tokens - decision.kept_tokens for decision in decisions)
    trace = RefinedTrace("t", "p", "…", [1] * (60 - saved), 60 - saved, "…", 60, decisions)
    return replace(stopped_before_training(data), settings=settings, refined_traces=[trace])


def charts(data: ReportData) -> dict[str, Chart]:
    return {chart.name: chart for chart in refinement_charts(data)}


def stopped_before_evaluation(data: ReportData) -> ReportData:
    return replace(data, evaluation=None, base_evaluation=(), squeezed_evaluation=())


def stopped_before_training(data: ReportData) -> ReportData:
    return replace(stopped_before_evaluation(data), training_log=())


def made_up_run(method: str = "tokensqueeze_reliable") -> ReportData:
    """A run that nobody ran: world problems, pre-training traces as the base's, gold traces as the squeezed model's."""
    rng = random.Random(0)
    train = {f"demo-train-{i:05d}": problem for i, problem in enumerate(world.problems("train", 24, seed=0))}
    test = {f"demo-test-{i:05d}": problem for i, problem in enumerate(world.problems("test", 80, seed=0))}
    verified = [sampled_trace(rng, problem_id, problem, sample) for problem_id, problem in train.items() for sample in range(8)]
    selected = [
        SelectedTrace(**vars(trace), rank=0, num_correct=6, num_sampled=8)
        for trace in verified
        if trace.sample_index == 0 and trace.verdict == "correct"
    ]
    base, squeezed = [], []
    for problem_id, problem in test.items():
        skill = rng.betavariate(4, 1)
        for sample in range(4):
            base.append(evaluated(rng, problem_id, problem, sample, "sampled", skill, squeezed=False))
            squeezed.append(evaluated(rng, problem_id, problem, sample, "sampled", (1 + skill) / 2, squeezed=True))
        base.append(evaluated(rng, problem_id, problem, 0, "greedy", skill, squeezed=False))
        squeezed.append(evaluated(rng, problem_id, problem, 0, "greedy", (1 + skill) / 2, squeezed=True))
    seconds = {
        "sample_traces": 81.0,
        "verify_traces": 6.4,
        "select_traces": 0.8,
        "propose_steps": 214.0,
        "accept_steps": 41.5,
        "build_pairs": 0.9,
        "train": 96.0,
        "evaluate": 133.0,
    }
    stages = [
        StageRecord(name, 192, time, 29_000 if time > 50 else 0, 2, name.endswith("y_traces"), {"problems": 24})
        for name, time in seconds.items()
    ]
    return ReportData(
        title="Demo run",
        method_name=method,
        method_summary=METHODS[method].summary,
        settings=settings_of(method),
        versions={"tokensqueeze": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        stages=stages,
        token_budget=BUDGET,
        questions={problem_id: problem.question for problem_id, problem in (train | test).items()},
        verified_traces=verified,
        selected_traces=selected,
        refined_traces=[refined_trace(rng, trace) for trace in selected],
        pairs=[pair_of(trace) for trace in selected],
        drop_counts={"no_incorrect_trace": 3, "no_correct_trace": 2, "too_long": 0},
        training_log=training_log(rng),
        base_evaluation=base,
        squeezed_evaluation=squeezed,
        evaluation=evaluation_json(base, squeezed, BUDGET),
    )


def num_tokens(text: str) -> int:
    return len(re.findall(r"\d| ?[A-Za-z]+|[^\w\s]|\n\n", text))


def sampled_trace(
    rng: random.Random,
    problem_id: str,
    problem: world.DemoProblem,
    sample: int,
    *,
    skill: float = 0.8,
    squeezed: bool = False,
) -> VerifiedTrace:
    right = rng.random() < skill
    steps = world.gold_trace(problem, "mixed") if squeezed else world.verbose_trace(rng, problem)
    answer = problem.answer if right else problem.answer + rng.choice((-10, -1, 1, 10))
    text = world.completion(steps, answer)
    thinking = num_tokens(text.split("</think>")[0])
    return VerifiedTrace(
        trace_id=f"{problem_id}/{sample}",
        problem_id=problem_id,
        sample_index=sample,
        text=text,
        token_ids=[1] * num_tokens(text),
        num_tokens=num_tokens(text),
        finish_reason="stop",
        verdict="correct" if right else "incorrect",
        extracted_answer=str(answer),
        verdict_cause=None if right or sample else "truncated",
        thinking_tokens=thinking,
        answer_tokens=num_tokens(text) - thinking,
    )


def evaluated(
    rng: random.Random,
    problem_id: str,
    problem: world.DemoProblem,
    sample: int,
    decoding: Decoding,
    skill: float,
    *,
    squeezed: bool,
) -> EvaluationTrace:
    trace = sampled_trace(rng, problem_id, problem, sample, skill=skill, squeezed=squeezed)
    return EvaluationTrace(**vars(trace), decoding=decoding)


def refined_trace(rng: random.Random, trace: VerifiedTrace) -> RefinedTrace:
    """Words before the arithmetic go, and now and then a bare step is worked out and becomes longer."""
    thinking, _, answer = trace.text.partition("\n</think>")
    decisions = []
    for index, step in enumerate(thinking.split("\n\n")):
        kept = step
        if " So " in step and rng.random() < 0.6:
            kept = step.rpartition(" So ")[2]
        elif re.fullmatch(r"\d+ [-+] \d+ = \d+\.", step) and rng.random() < 0.7:
            value, sign, amount, result = re.findall(r"\d+|[-+](?= )", step)
            tens = int(amount) // 10 * 10
            middle = int(value) + (tens if sign == "+" else -tens)
            kept = f"{value} {sign} {tens} = {middle}, {middle} {sign} {int(amount) % 10} = {result}."
        kl = 0.0 if kept == step else 0.005 * rng.random() ** 2
        reliability = min(1.0, 0.8 + rng.random() * 0.22)
        decision = StepDecision(index, step, kept, num_tokens(step), num_tokens(kept), kl, reliability, 14, 5)
        decisions.append(replace(decision, **tried_half(step, index)))
    text = "\n\n".join(decision.kept_text for decision in decisions) + "\n</think>" + answer
    return RefinedTrace(
        trace_id=trace.trace_id,
        problem_id=trace.problem_id,
        text=text,
        token_ids=[1] * num_tokens(text),
        num_tokens=num_tokens(text),
        original_text=trace.text,
        original_num_tokens=trace.num_tokens,
        decisions=decisions,
    )


def tried_half(step: str, index: int) -> dict[str, Any]:
    """The second half of a step as what was tried and turned down, by its KL and by its form in turns."""
    words = step.split(" ")
    if len(words) < 6:
        return {}
    half = " ".join(words[len(words) // 2 :])
    kl, reliability = (0.006 + 0.001 * index, None) if index % 2 else (0.001, 0.05 * index)
    return dict(rejected_text=half, rejected_tokens=num_tokens(half), rejected_kl=kl, rejected_reliability=reliability)


def pair_of(trace: VerifiedTrace) -> ScoredPair:
    return ScoredPair(
        pair_id=f"{trace.trace_id}/0",
        problem_id=trace.problem_id,
        prompt="",
        chosen=trace.text,
        rejected=trace.text,
        prompt_token_ids=[1],
        chosen_token_ids=[1],
        rejected_token_ids=[1],
        chosen_num_tokens=1,
        rejected_num_tokens=1,
        chosen_trace_id=trace.trace_id,
        rejected_trace_id=trace.trace_id,
        ref_chosen_logps=-20.0,
        ref_rejected_logps=-30.0,
    )


def training_log(rng: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": 0, "pairs": 320, "left_out": {"both sides the same": 4, "too long": 17}}]
    for step in range(1, 81):
        if step in (1, 20, 40, 60, 80):
            rows.append({"step": 0 if step == 1 else step, "dev_accuracy": 0.84 + 0.001 * step, "dev_length": 150 - step})
        done = step / 80
        rows.append(
            {
                "step": step,
                "epoch": 0,
                "loss": 0.5 - 0.25 * done + rng.gauss(0, 0.03),
                "dpo_loss": 0.7 - 0.4 * done + rng.gauss(0, 0.04),
                "sft_loss": 0.3 - 0.1 * done + rng.gauss(0, 0.02),
                "chosen_logps": -20 + 8 * done + rng.gauss(0, 1),
                "rejected_logps": -30 - 12 * done + rng.gauss(0, 2),
                "ref_chosen_logps": -20 + rng.gauss(0, 1),
                "ref_rejected_logps": -30 + rng.gauss(0, 1),
                "chosen_reward": 0.8 * done,
                "rejected_reward": -1.2 * done,
                "margin": 2 * done,
                "preference_accuracy": min(1.0, 0.5 + 0.5 * done + rng.gauss(0, 0.05)),
                "grad_norm": 1.0,
                "learning_rate": 2e-4 * (1 - done),
                "tokens": 4000,
                "seconds": 1.25,
                "max_memory_bytes": 3 * 2**29 - 1000 * (80 - step),
            }
        )
    rows.append({"step": 80, "alarm": "chosen", "warning": "step 80: chosen log-probabilities <fall>"})
    return rows
