"""One self-contained HTML page about a run: what came out, what was done to the traces, and where the time went.

Nothing is loaded from anywhere, so the page works offline and can be mailed. What a stopped run lacks is said.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensqueeze.config import Settings
from tokensqueeze.reporting import wording
from tokensqueeze.reporting.comparisons import (
    AnswerExample,
    RefinementExample,
    answer_examples,
    refinement_examples,
    split_answer,
)
from tokensqueeze.reporting.headline import Headline, headline
from tokensqueeze.reporting.model_card import DEMO_CAVEAT
from tokensqueeze.reporting.page import page_environment
from tokensqueeze.reporting.refinement import Reason, kl_on_the_rest, turned_down
from tokensqueeze.reporting.report_data import ReportData, StageRecord
from tokensqueeze.reporting.run_charts import evaluation_charts, refinement_charts, time_chart, training_charts
from tokensqueeze.reporting.summary import HEADERS, LEGEND, evaluation_rows
from tokensqueeze.schema import RefinedTrace
from tokensqueeze.settings_file import Section
from tokensqueeze.tables import write_text

__all__ = ["ReportData", "StageRecord", "report_html", "write_report"]

_MOST_CAUSES = 8


def write_report(data: ReportData, path: Path) -> None:
    """Write the page, whole or not at all. Raises `StorageError` where the path can't be written."""
    write_text(path, report_html(data))


def report_html(data: ReportData) -> str:
    """Return the page; the same data give the same text."""
    environment = page_environment()
    think_end = data.settings.model.think_end
    environment.filters["thinking"] = lambda text: split_answer(text, think_end)[0]
    environment.filters["answer"] = lambda text: split_answer(text, think_end)[1]
    page = environment.get_template("report.html.j2")
    return page.render(
        data=data,
        result=_result(data),
        sources=_sources(data),
        refinement=_refinement(data),
        evaluation_charts=evaluation_charts(data),
        refinement_charts=refinement_charts(data),
        training=_training(data),
        training_charts=training_charts(data),
        time_charts=time_chart(data.stages),
        answers=_answers(data),
        settings=_settings(data.settings),
        sampling=data.settings.sampling,
        absent=_absent(data),
        demo_caveat=DEMO_CAVEAT if data.settings.model.path == "demo" else "",
    )


@dataclass(frozen=True)
class _Bar:
    """One figure of one model; `share` of the widest bar beside it, in percent."""

    model: str
    text: str
    share: float


@dataclass(frozen=True)
class _Tile:
    title: str
    change: str
    chance: str
    """The change's 95 % interval and p-value."""
    bars: tuple[_Bar, ...]


@dataclass(frozen=True)
class _Result:
    headline: Headline
    tiles: tuple[_Tile, ...]
    conditions: str
    table_headers: tuple[str, ...]
    table_rows: tuple[tuple[str, ...], ...]
    legend: str


@dataclass(frozen=True)
class _Count:
    """A way station of the data; `notes` say what it is out of, or what was left behind."""

    label: str
    count: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Sources:
    counts: tuple[_Count, ...]
    drops: tuple[tuple[str, int], ...]
    verdicts: tuple[tuple[str, int, float], ...]
    causes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Rest:
    """Of the rewritten steps whose KL was taken over the whole rest of the trace, those that exceed the bound there."""

    checked: int
    exceeding: int


@dataclass(frozen=True)
class _Refinement:
    steps: int
    rewritten: int
    longer: int
    tokens_before: int
    tokens_after: int
    num_traces: int
    scored: int
    candidates: int
    stayed: tuple[tuple[Reason, int], ...]
    """Steps that stayed although a candidate was tried, by why the nearest was turned down."""
    rest: _Rest | None
    examples: tuple[RefinementExample, ...]

    @property
    def tried_shown(self) -> bool:
        return any(step.tried for example in self.examples for step in example.steps)


@dataclass(frozen=True)
class _Training:
    pairs: int | None
    left_out: tuple[tuple[str, int], ...]
    """Pairs, by the reason."""
    steps: int
    epochs: int
    tokens: int
    seconds: float
    max_memory_bytes: int
    """0: not known."""
    warnings: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class _Setting:
    key: str
    value: str
    meaning: str
    is_default: bool


def _result(data: ReportData) -> _Result | None:
    evaluation = data.evaluation
    if evaluation is None or not evaluation.get("change"):
        return None
    settings, said = data.settings.evaluation, headline(evaluation)
    cell = evaluation["base"][said.decoding]
    samples = round(cell["num_samples"] / max(1, cell["num_problems"]))
    how = (
        f"{wording.counted(samples, 'sample')} each at temperature {settings.temperature:g}"
        if said.decoding == "sampled"
        else "greedy answers"
    )
    conditions = (
        f"{wording.counted(cell['num_problems'], 'held-out problem')}, {how}. ± is one standard error over problems; "
        "it leaves out what another draw of traces or another training seed would change. p: how often chance alone would give "
        "such a change (sign-flip test, paired by problem)."
    )
    tiles = [tile for decoding in ("sampled", "greedy") for tile in _tiles(evaluation, decoding)]
    rows = tuple(evaluation_rows(evaluation))
    return _Result(said, tuple(tiles), conditions, HEADERS, rows, LEGEND)


def _tiles(evaluation: Mapping[str, Any], decoding: str) -> list[_Tile]:
    cells = {model: evaluation.get(model, {}).get(decoding) for model in ("base", "squeezed")}
    change = evaluation["change"].get(decoding)
    if change is None or None in cells.values():
        return []
    longest = max(cell["length_all"] for cell in cells.values()) or 1
    lengths = [
        _Bar(
            model,
            wording.number_with_error(cell["length_all"], cell["length_all_se"]),
            100 * cell["length_all"] / longest,
        )
        for model, cell in cells.items()
    ]
    shares = {
        key: [
            _Bar(model, wording.percent_with_error(cell[key], cell[f"{key}_se"]), 100 * cell[key])
            for model, cell in cells.items()
        ]
        for key in ("accuracy", "auc")
    }
    return [
        _Tile(
            f"Tokens per answer, {decoding}",
            f"× {wording.number(change['length_ratio'], 2)}",
            _chance(wording.interval(change["length_ratio_ci"], decimals=3), change["length_p"]),
            tuple(lengths),
        ),
        _Tile(
            f"Accuracy, {decoding}",
            wording.points_with_error(change["accuracy"], change["accuracy_se"]),
            _chance(wording.interval(change["accuracy_ci"], scale=100, sign=True), change["accuracy_p"]),
            tuple(shares["accuracy"]),
        ),
        _Tile(
            f"AUC, {decoding}",
            wording.points_with_error(change["auc"], change["auc_se"]),
            _chance(wording.interval(change["auc_ci"], scale=100, sign=True), change["auc_p"]),
            tuple(shares["auc"]),
        ),
    ]


def _chance(interval: str, p: float | None) -> str:
    if p is None:
        return "too few problems for an interval or a test"
    told = f"p {wording.p_value(p)}" if p < 0.001 else f"p = {wording.p_value(p)}"
    return f"95 % interval {interval}, {told}" if interval else told


def _traces_count(data: ReportData) -> _Count:
    sampling = data.settings.sampling
    if sampling.traces:
        return _Count("traces imported", len(data.verified_traces), (Path(sampling.traces.path).name,))
    return _Count("traces sampled", len(data.verified_traces), (f"{sampling.num_samples} per problem",))


def _sources(data: ReportData) -> _Sources:
    traces = data.verified_traces
    verdicts = Counter(trace.verdict for trace in traces)
    correct, num_problems = verdicts["correct"], len({trace.problem_id for trace in traces})
    causes = Counter(trace.verdict_cause for trace in traces if trace.verdict_cause is not None)
    selected_from = len({trace.problem_id for trace in data.selected_traces})
    counts = [
        _Count("problems", num_problems),
        _traces_count(data),
        _Count("of them correct", correct, (wording.percent(correct / len(traces)),) if traces else ()),
    ]
    if data.selected_traces:
        chosen_length = sum(trace.num_tokens for trace in data.selected_traces) / len(data.selected_traces)
        all_length = sum(trace.num_tokens for trace in traces) / max(1, len(traces))
        notes = (f"from {wording.counted(selected_from, 'problem')}",)
        notes += (f"{chosen_length:,.0f} tokens each; all traces: {all_length:,.0f}",) if traces else ()
        counts.append(_Count("selected", len(data.selected_traces), notes))
    if data.pairs:
        pair_problems = wording.counted(len({pair.problem_id for pair in data.pairs}), "problem")
        alone = all(pair.rejected is None for pair in data.pairs)
        kind = "chosen side alone" if alone else "chosen against rejected"
        counts.append(_Count("to train on" if alone else "pairs", len(data.pairs), (f"from {pair_problems}", kind)))
    return _Sources(
        counts=tuple(counts),
        drops=tuple((wording.plain(reason), count) for reason, count in sorted(data.drop_counts.items()) if count),
        verdicts=tuple(
            (verdict, verdicts[verdict], 100 * verdicts[verdict] / len(traces))
            for verdict in ("correct", "incorrect", "no_answer", "unverifiable")
            if verdicts[verdict]
        ),
        causes=tuple(causes.most_common(_MOST_CAUSES)),
    )


def _refinement(data: ReportData) -> _Refinement | None:
    traces: Sequence[RefinedTrace] = data.refined_traces
    rewriter = data.settings.rewriter
    decisions = [decision for trace in traces for decision in trace.decisions]
    if not decisions or rewriter.name == "none":
        return None
    tried = [turned_down(decision, rewriter) for decision in decisions if not decision.rewritten]
    stayed = Counter[Reason](candidate.reason for candidate in tried if candidate)
    checked = [decision for decision in decisions if kl_on_the_rest(decision) is not None]
    return _Refinement(
        steps=len(decisions),
        rewritten=sum(decision.rewritten for decision in decisions),
        longer=sum(decision.kept_tokens > decision.original_tokens for decision in decisions),
        tokens_before=sum(trace.original_num_tokens for trace in traces),
        tokens_after=sum(trace.num_tokens for trace in traces),
        num_traces=len(traces),
        scored=sum(decision.num_scored for decision in decisions),
        candidates=sum(decision.num_candidates for decision in decisions),
        stayed=tuple(stayed.most_common()),
        rest=_Rest(len(checked), sum(not decision.rest_passes for decision in checked)) if checked else None,
        examples=tuple(refinement_examples(traces, rewriter)),
    )


def _training(data: ReportData) -> _Training | None:
    steps = [row for row in data.training_log if "loss" in row]
    if not steps:
        return None
    starts = [row for row in data.training_log if "left_out" in row]
    return _Training(
        pairs=starts[0]["pairs"] if starts else None,
        left_out=tuple(starts[0]["left_out"].items()) if starts else (),
        steps=len(steps),
        epochs=max(row["epoch"] for row in steps),
        tokens=sum(row["tokens"] for row in steps),
        seconds=sum(row["seconds"] for row in steps),
        max_memory_bytes=max(row.get("max_memory_bytes") or 0 for row in steps),
        warnings=tuple(row["warning"] for row in data.training_log if "warning" in row),
    )


def _answers(data: ReportData) -> list[AnswerExample]:
    return answer_examples(data.base_evaluation, data.squeezed_evaluation)


def _absent(data: ReportData) -> dict[str, str]:
    """Say, for every part of the page that has nothing to show, why that is so."""
    reached = f"The run has gone as far as “{wording.plain(data.stages[-1].name)}”" if data.stages else "No stage has finished"
    unreached = f"{reached}. Run again without --until to go on; what is done is taken over."
    if data.settings.problems.test is None:
        no_evaluation = "No held-out problems are named: set problems.test to a file, and run again."
    else:
        no_evaluation = f"Not evaluated yet. {unreached}"
    if data.settings.rewriter.name == "none":
        no_refinement = "This method keeps the selected traces as they are (rewriter “none”), so no step was rewritten."
    else:
        no_refinement = f"No step has been refined yet. {unreached}"
    if data.settings.objective.name == "sft":
        no_rejected = "The objective “sft” trains on the chosen traces alone: there is no rejected side to compare with."
    else:
        no_rejected = ""
    return {
        "evaluation": no_evaluation,
        "refinement": no_refinement,
        "training": f"Not trained yet. {unreached}",
        "rejected": no_rejected,
        "traces": f"No traces yet. {unreached}",
        "pairs": f"No pairs yet. {unreached}",
        "time": "No stage has finished.",
    }


def _settings(settings: Settings) -> dict[str, list[_Setting]]:
    """List all settings by section, with what each means, and whether it is the default."""
    listed: dict[str, list[_Setting]] = {"": []}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Section):
            listed[name] = _section_settings(value)
        else:
            listed[""].append(_Setting(name, str(value), field.description or "", value == field.default))
    return listed


def _section_settings(section: Section, prefix: str = "") -> list[_Setting]:
    listed = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            listed += _section_settings(value, f"{prefix}{name}.")
        else:
            shown = "none" if value is None else str(value)
            listed.append(_Setting(prefix + name, shown, field.description or "", value == field.default))
    return listed
