"""Traces that were made elsewhere: read, turned into this model's tokens, and taken through to pairs and figures."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from tokensqueeze.config import EngineSettings, TraceSource, check_evaluate_settings
from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.errors import ProblemsError, SettingsError
from tokensqueeze.methods import settings_from
from tokensqueeze.metrics.evaluation import measure
from tokensqueeze.pipeline.evaluate import BenchmarkSource, earlier_figures, plan_evaluation
from tokensqueeze.pipeline.import_traces import read_trace_file, read_traces
from tokensqueeze.pipeline.plan import RunPlan, plan_run
from tokensqueeze.pipeline.planned_tables import write_problems
from tokensqueeze.schema import FinishReason, ImportedTrace
from tokensqueeze.stages.import_traces import ImportTraces
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import Stage
from tokensqueeze.tables import write_json
from tokensqueeze.traces.imported import ImportedCompletion, imported_completion
from tokensqueeze.traces.token_texts import TokenTexts

KEY = "sampling.traces"
MODEL = ModelSource(demo_model_dir(), EngineSettings(), "float32", "</think>")
EOS = 2
"""The demo tokenizer's <|im_end|>."""
OPENED = "<|im_start|>assistant\n<think>\n"
RIGHT = "1 + 1 = 2.\n</think>\n\n\\boxed{2}"
LONG_WRONG = "1 + 1 = 2.\n\n2 + 1 = 3.\n\nSo it is 3.\n</think>\n\n\\boxed{3}"
ROWS: list[dict[str, Any]] = [
    {"question": "1 + 1?", "response": LONG_WRONG, "answer": 2.0},
    {"question": "2 + 2?", "response": "4.</think> \\boxed{4}", "answer": 4},
    {"question": "1 + 1?", "response": RIGHT, "answer": 2},
    {"question": "1 + 1?", "response": RIGHT + " I am sure.", "answer": "2"},
]


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encode(text: str) -> list[int]:
    """The tokenizer's file, read by the library that transformers wraps."""
    return Tokenizer.from_file(str(demo_model_dir() / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def completion(
    text: str,
    finish_reason: FinishReason | None = "stop",
    *,
    prompt: str = OPENED,
    room: int = 500,
    think_end: str = "</think>",
) -> ImportedCompletion:
    return imported_completion(
        text,
        finish_reason,
        prompt=prompt,
        tokens=TokenTexts(load_tokenizer(demo_model_dir()), frozenset({EOS})),
        eos_token_ids={EOS},
        ending=EOS,
        room=room,
        think_end=think_end,
    )


def traces_of(path: Path, **columns: Any) -> list[ImportedTrace]:
    return [trace for _, trace in read_traces(TraceSource(path=str(path), **columns), key=KEY)]


def message(path: Path, **columns: Any) -> str:
    with pytest.raises(ProblemsError) as caught:
        read_trace_file(TraceSource(path=str(path), **columns), key=KEY)
    assert str(caught.value).startswith(f"{KEY}: ")
    return str(caught.value).removeprefix(f"{KEY}: ")


def plan_of(path: Path, store: Path, **sections: Any) -> RunPlan:
    values = {"sampling": {"traces": {"path": str(path), "per_shard": 1}}, "rewriter": {"name": "none"}, **sections}
    return plan_run(settings_from(values), store)


def make(stage: Stage[Any]) -> list[Any]:
    """What the stage's workers do on Ray, here one shard after the other."""
    worker = stage.make_worker()
    for shard in range(stage.num_shards):
        result = worker({name: table.read_part(shard) for name, table in stage.inputs.items()})
        stage.output.write_part(shard, result.rows, result.counts)
    stage.output.complete({"num_shards": stage.num_shards})
    return stage.output.rows()


def test_a_response_becomes_its_tokens_and_the_one_that_ends_it() -> None:
    assert completion("12 + 7.</think> \\boxed{19}") == ImportedCompletion(
        [*encode("12 + 7.</think> \\boxed{19}"), EOS], "stop", []
    )


def test_a_response_that_hit_its_limit_has_no_end() -> None:
    assert completion("12 + 7", "length") == ImportedCompletion(encode("12 + 7"), "length", [])


def test_a_response_without_a_finish_reason_is_taken_to_have_ended_and_that_is_told() -> None:
    assert completion("12", None) == ImportedCompletion([*encode("12"), EOS], "stop", ["no finish_reason, taken as stop"])


def test_an_empty_response_is_the_end_alone() -> None:
    assert completion("").token_ids == [EOS]
    assert completion("", "length").token_ids == []


def test_thinking_that_the_prompt_has_opened_is_not_opened_twice() -> None:
    note = ["<think> left out, the prompt has it"]
    expected = ImportedCompletion([*encode("Hm.</think> 2"), EOS], "stop", note)
    assert completion("<think>\nHm.</think> 2") == expected
    assert completion("\n<think>Hm.</think> 2") == expected
    assert completion("Hm.</think> 2") == ImportedCompletion(expected.token_ids, "stop", [])


def test_thinking_that_the_prompt_has_not_opened_stays_as_it_is() -> None:
    bare = "<|im_start|>assistant\n"
    assert completion("<think>\nHm.</think> 2", prompt=bare).token_ids == [*encode("<think>\nHm.</think> 2"), EOS]
    asked = completion("Hm.</think> 2", prompt=f"Write <think> first.{bare}")
    assert asked.token_ids == [*encode("Hm.</think> 2"), EOS]
    assert asked.notes == ["has </think>, which neither it nor the prompt has opened"]


def test_an_end_of_thinking_that_is_no_tag_opens_nothing() -> None:
    assert completion("<think> so: ### 2", think_end="###").token_ids == [*encode("<think> so: ### 2"), EOS]


def test_an_end_token_that_the_file_spells_out_is_the_end() -> None:
    assert completion("12<|im_end|>") == ImportedCompletion([*encode("12"), EOS], "stop", [])
    assert completion("12<|im_end|>\nuser 13", "length") == ImportedCompletion(
        [*encode("12"), EOS], "stop", ["cut behind an end-of-sequence token"]
    )


def test_a_response_that_the_context_has_no_room_for_is_cut_and_has_hit_its_limit() -> None:
    tokens = encode("12 + 7 = 19")
    assert completion("12 + 7 = 19", room=len(tokens) + 1).finish_reason == "stop"
    assert completion("12 + 7 = 19", room=len(tokens)) == ImportedCompletion(tokens, "length", ["cut at the model's context"])
    assert completion("12 + 7 = 19", room=2).token_ids == tokens[:2]


def test_problems_are_the_files_questions_in_its_order_with_their_samples_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path, ROWS)
    file = read_trace_file(TraceSource(path=str(path)), key=KEY)
    assert [(p.problem_id, p.question, p.gold_answer) for p in file.problems] == [
        ("mine-00001", "1 + 1?", "2"),
        ("mine-00002", "2 + 2?", "4"),
    ]
    assert file.num_traces == {"mine-00001": 3, "mine-00002": 1}
    assert file.summary() == "4 traces of 2 problems, 1 to 3 a problem"
    read = [(trace.problem_id, trace.sample_index) for trace in traces_of(path)]
    assert read == [("mine-00001", 0), ("mine-00002", 0), ("mine-00001", 1), ("mine-00001", 2)]


def test_columns_may_have_any_name_and_parquet_is_read_alike(tmp_path: Path) -> None:
    rows = [
        {"who": 7, "q": "1 + 1?", "said": "2", "gold": 2, "nr": 5, "why": "max_tokens"},
        {"who": 7, "q": "1 + 1?", "said": "3", "gold": 2, "nr": 1, "why": None},
    ]
    columns = {
        "id_column": "who",
        "question_column": "q",
        "response_column": "said",
        "gold_column": "gold",
        "sample_column": "nr",
        "finish_reason_column": "why",
    }
    expected = [ImportedTrace("7", 5, "2", "length"), ImportedTrace("7", 1, "3", None)]
    assert traces_of(write_rows(tmp_path, rows), **columns) == expected
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    assert traces_of(tmp_path / "mine.parquet", **columns) == expected


def test_the_same_question_under_two_ids_is_two_problems(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"problem_id": "a"}, ROWS[0] | {"problem_id": "b"}]
    assert {trace.problem_id for trace in traces_of(write_rows(tmp_path, rows))} == {"a", "b"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [ROWS[0], ROWS[1], ROWS[0] | {"answer": 3}],
            "line 3: the gold answer is '3', and '2' for the same question on line 1; mend one of them",
        ),
        (
            [ROWS[0] | {"problem_id": 1}, ROWS[1] | {"problem_id": 1}],
            "line 2: the problem '1' had another question on line 1; mend the row, or name another column with "
            "sampling.traces.id_column",
        ),
        (
            [ROWS[0] | {"sample_index": 0}, ROWS[1] | {"sample_index": 0}, ROWS[2] | {"sample_index": 0}],
            "line 3: sample 0 of problem 'mine-00001' is on line 1 too; take one out, or name another column with "
            "sampling.traces.sample_column",
        ),
        (
            [ROWS[0] | {"sample_index": "first"}],
            "line 1: \"sample_index\" is 'first', no whole number; mend the row, or name another column with "
            "sampling.traces.sample_column",
        ),
        (
            [ROWS[0], ROWS[1] | {"response": None}],
            'line 2: "response" is missing; take the row out, or name another column with sampling.traces.response_column',
        ),
        (
            [ROWS[0] | {"response": ["2"]}],
            'line 1: "response" is a list, not text; take the row out, or name another column with '
            "sampling.traces.response_column",
        ),
        (
            [ROWS[0] | {"finish_reason": "abort"}],
            "line 1: \"finish_reason\" is 'abort'; known are stop, eos, eos_token, end_turn, stop_sequence, length, "
            "max_tokens: take the row out, or name another column with sampling.traces.finish_reason_column",
        ),
        (
            [{"question": "1?", "said": "1", "answer": 1}],
            'line 1: no "response" or "completion" or "output" or "generation"; the row has "question", "said", "answer". '
            "Name the column with sampling.traces.response_column",
        ),
        ([], "no trace in it; give it at least one row"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_line_and_the_way_out(
    tmp_path: Path, rows: list[dict[str, Any]], told: str
) -> None:
    path = write_rows(tmp_path, rows)
    separator = " " if rows else ": "
    assert message(path) == f"{path}{separator}{told}"


def test_imported_traces_are_verified_selected_and_paired_as_sampled_ones_are(tmp_path: Path) -> None:
    plan = plan_of(write_rows(tmp_path, ROWS), tmp_path / "store")
    assert plan.imported
    write_problems(plan.problem_sets["train"])
    plan.imported.write(plan.problem_sets["train"])
    traces = make(plan.sample)
    assert [(trace.trace_id, trace.num_tokens) for trace in traces] == [
        ("mine-00001/0", len(encode(LONG_WRONG)) + 1),
        ("mine-00001/1", len(encode(RIGHT)) + 1),
        ("mine-00001/2", len(encode(RIGHT + " I am sure.")) + 1),
        ("mine-00002/0", len(encode("4.</think> \\boxed{4}")) + 1),
    ]
    assert [trace.verdict for trace in make(plan.verify)] == ["incorrect", "correct", "correct", "correct"]
    # Of two correct ones of three, alpha·(1 − 2/3)·2 rounds up to one: the shortest.
    selected = make(plan.select)
    assert [(trace.trace_id, trace.num_correct, trace.num_sampled) for trace in selected] == [
        ("mine-00001/1", 2, 3),
        ("mine-00002/0", 1, 1),
    ]
    for stage in (plan.propose, plan.accept):
        make(stage)
    [pair] = make(plan.pair)
    assert (pair.chosen, pair.rejected) == (RIGHT, LONG_WRONG)
    assert (pair.chosen_trace_id, pair.rejected_trace_id) == ("mine-00001/1", "mine-00001/0")


def test_a_write_that_was_killed_is_done_again(tmp_path: Path) -> None:
    plan = plan_of(write_rows(tmp_path, ROWS), tmp_path / "store")
    assert plan.imported
    plan.imported.table.write_part(1, [], {})
    plan.imported.write(plan.problem_sets["train"])
    assert [trace.text for trace in plan.imported.table.rows()] == [
        LONG_WRONG,
        RIGHT,
        RIGHT + " I am sure.",
        ROWS[1]["response"],
    ]


def test_a_shard_without_responses_gives_none() -> None:
    assert ImportTraces(MODEL)({"problems": [], "imported_traces": []}).rows == []


def test_what_was_done_to_responses_is_counted(tmp_path: Path) -> None:
    plan = plan_of(write_rows(tmp_path, [*ROWS, ROWS[2]]), tmp_path / "store")
    train = plan.problem_sets["train"]
    imported = traces_of(tmp_path / "mine.jsonl")
    result = ImportTraces(MODEL)({"problems": train.problems, "imported_traces": imported})
    assert result.counts == {
        "responses: no finish_reason, taken as stop": 5,
        "responses: copies of another of the same problem": 1,
    }


def test_tables_follow_from_what_the_file_says_and_not_from_settings_of_a_sampling_that_is_not_done(tmp_path: Path) -> None:
    path, store = write_rows(tmp_path, ROWS), tmp_path / "store"
    first = plan_of(path, store)
    sampling = {"traces": {"path": str(path), "per_shard": 1}, "temperature": 0.3}
    assert plan_of(path, store, sampling=sampling).sample.output.path == first.sample.output.path
    write_rows(tmp_path, [ROWS[0] | {"response": "3"}, *ROWS[1:]])
    changed = plan_of(path, store)
    assert changed.problem_sets["train"].fingerprint == first.problem_sets["train"].fingerprint
    assert changed.sample.output.path != first.sample.output.path


def test_traces_and_problems_to_draw_from_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"problems\.train: sampling\.traces brings its own problems; take one of the two out"
    ):
        plan_of(write_rows(tmp_path, ROWS), tmp_path, problems={"train": {"path": "demo:train"}})


def test_a_wrong_file_of_traces_is_one_mistake_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"1 mistake:\n  sampling\.traces: .*gone\.jsonl: no such file"):
        plan_of(tmp_path / "gone.jsonl", tmp_path)


def test_traces_can_not_be_forced_nor_measured_under_a_name_that_is_taken(tmp_path: Path) -> None:
    traces = {"path": str(write_rows(tmp_path, ROWS))}
    with pytest.raises(SettingsError, match=r"forcing\.thinking_budgets: traces that are there"):
        check_evaluate_settings({"traces": traces, "forcing": {"thinking_budgets": [5]}})
    settings, name = check_evaluate_settings({"traces": traces}), Path(traces["path"]).stem
    with pytest.raises(SettingsError, match=rf"{name}: evaluated on twice"):
        plan_evaluation(settings, [BenchmarkSource(name, "demo:test", limit=2)], tmp_path / "store")


def test_a_budget_given_twice_is_one() -> None:
    settings = check_evaluate_settings({"forcing": {"thinking_budgets": [9, 5, 9]}})
    assert settings.forcing.thinking_budgets == [5, 9]


def test_traces_are_measured_as_they_are(tmp_path: Path) -> None:
    plan = plan_evaluation(
        check_evaluate_settings({"traces": {"path": str(write_rows(tmp_path, ROWS))}}), [], tmp_path / "store"
    )
    [planned] = plan.benchmarks
    assert planned.imported
    write_problems(planned.problems)
    planned.imported.write(planned.problems)
    done = planned.evaluate.make_worker()({name: table.rows() for name, table in planned.evaluate.inputs.items()})
    assert [problem.question for problem in planned.problems.problems] == ["1 + 1?", "2 + 2?"]
    assert {trace.decoding for trace in done.rows} == {"sampled"}
    lengths = {trace.trace_id: trace.num_tokens for trace in done.rows}
    cell = measure(done.rows, token_budget=100)
    # Two of three, and one of one.
    assert cell.accuracy == pytest.approx((2 / 3 + 1) / 2)
    first = (lengths["mine-00001/0"] + lengths["mine-00001/1"] + lengths["mine-00001/2"]) / 3
    assert cell.length_all == pytest.approx((first + lengths["mine-00002/0"]) / 2)
    assert done.counts["responses: no finish_reason, taken as stop"] == 4


def test_figures_on_other_benchmarks_of_the_same_model_stay(tmp_path: Path) -> None:
    settings = check_evaluate_settings({"traces": {"path": str(write_rows(tmp_path, ROWS))}})
    plan = plan_evaluation(settings, [], tmp_path / "out" / "tables")
    kept: dict[str, Any] = {"tables": {"evaluation": "tables/evaluation_a/1"}}
    gone: dict[str, Any] = {"tables": {"evaluation": "tables/evaluation_b/1"}}
    before = {"model_fingerprint": plan.model_fingerprint, "benchmarks": {"a": kept, "b": gone}}
    write_json(tmp_path / "out" / "tables" / "evaluation_a" / "1" / "manifest.json", {})
    write_json(tmp_path / "out" / "evaluation.json", before)
    assert earlier_figures(plan, tmp_path / "out") == {"a": kept}
    write_json(tmp_path / "out" / "evaluation.json", before | {"model_fingerprint": "other weights in the same folder"})
    assert earlier_figures(plan, tmp_path / "out") == {}
