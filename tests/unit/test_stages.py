"""Each stage's worker called directly with rows, no Ray: empty tables, odd rows, and what the rows must add up to.

The demo's model stands in for a model; nothing here depends on what it writes.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tokensqueeze.config import (
    AdaptiveDepth,
    EngineSettings,
    EvaluationSettings,
    KLBound,
    NoRewrite,
    PairingSettings,
    Reliable,
    RewriterSettings,
    SamplingSettings,
    Shortest,
    VerifierSettings,
)
from tokensqueeze.engines.checkpoint import demo_model_dir, eos_token_ids, load_model, load_tokenizer
from tokensqueeze.errors import EngineError, TableError
from tokensqueeze.schema import (
    Candidate,
    EvaluationTrace,
    PreferencePair,
    Problem,
    RefinedTrace,
    ScoredPair,
    SelectedTrace,
    StepCandidates,
    Trace,
    Verdict,
    VerifiedTrace,
)
from tokensqueeze.stages.accept_steps import AcceptSteps
from tokensqueeze.stages.build_pairs import BuildPairs
from tokensqueeze.stages.evaluate_model import EvaluateModel
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.propose_steps import ProposeSteps
from tokensqueeze.stages.sample_traces import SampleTraces
from tokensqueeze.stages.score_reference import ScoreReference
from tokensqueeze.stages.select_traces import SelectTraces
from tokensqueeze.stages.stage import ShardActor, ShardReport, ShardResult, Stage
from tokensqueeze.stages.verify_traces import VerifyTraces, verdict_counts
from tokensqueeze.tables import Table

SOURCE = ModelSource(demo_model_dir(), EngineSettings(max_batch_size=32), "float32", "</think>")
(EOS,) = eos_token_ids(demo_model_dir())
GOOD = "47 + 38 = 85, 85 - 7 = 78.\n\nSo Tom has 78 apples.\n</think>\n\nThe answer is \\boxed{78}."
"""Two steps, and the answer 78."""


def encode(text: str) -> list[int]:
    return load_tokenizer(demo_model_dir())(text, add_special_tokens=False).input_ids


@cache
def problem(problem_id: str, gold_answer: str = "78") -> Problem:
    question = "Tom has 47 apples. Tom buys 38 apples and then loses 7. How many apples?"
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    return Problem(problem_id, question, gold_answer, prompt, encode(prompt))


def trace(text: str, problem_id: str = "p", index: int = 0, finish_reason: str = "stop") -> Trace:
    token_ids = [*encode(text), EOS] if finish_reason == "stop" else encode(text)
    return SOURCE.trace(problem_id, index, token_ids, finish_reason)


def verified(text: str, verdict: Verdict, problem_id: str = "p", index: int = 0) -> VerifiedTrace:
    own = trace(text, problem_id, index)
    thinking = SOURCE.thinking_tokens(own.token_ids)
    return VerifiedTrace(
        **asdict(own),
        verdict=verdict,
        extracted_answer=None,
        verdict_cause=None,
        thinking_tokens=thinking,
        answer_tokens=own.num_tokens - thinking,
    )


def selected(text: str, problem_id: str = "p", index: int = 0) -> SelectedTrace:
    return SelectedTrace(**asdict(verified(text, "correct", problem_id, index)), rank=0, num_correct=1, num_sampled=2)


def refined(text: str, problem_id: str = "p", index: int = 0) -> RefinedTrace:
    own = trace(text, problem_id, index)
    return RefinedTrace(own.trace_id, problem_id, own.text, own.token_ids, own.num_tokens, own.text, own.num_tokens, [])


def kept(result: ShardResult[Any], row_type: type, folder: Path) -> list[Any]:
    """The rows as they come back from a table on disk."""
    table: Table[Any] = Table(folder / row_type.__name__, row_type)
    table.write_part(0, result.rows, {})
    assert table.read_part(0) == result.rows
    return result.rows


@pytest.mark.parametrize(
    ("make_worker", "tables", "row_type"),
    [
        (lambda: SampleTraces(SOURCE, SamplingSettings()), ["problems"], Trace),
        (lambda: VerifyTraces(SOURCE, VerifierSettings()), ["problems", "traces"], VerifiedTrace),
        (lambda: SelectTraces(AdaptiveDepth()), ["verified_traces"], SelectedTrace),
        (lambda: ProposeSteps(SOURCE, KLBound()), ["problems", "selected_traces"], StepCandidates),
        (lambda: ProposeSteps(SOURCE, NoRewrite()), ["problems", "selected_traces"], StepCandidates),
        (lambda: AcceptSteps(SOURCE, Reliable()), ["problems", "selected_traces", "step_candidates"], RefinedTrace),
        (
            lambda: BuildPairs(PairingSettings(), with_rejected=True),
            ["problems", "refined_traces", "verified_traces"],
            PreferencePair,
        ),
        (lambda: ScoreReference(SOURCE), ["preference_pairs"], ScoredPair),
        (
            lambda: EvaluateModel(SOURCE, EvaluationSettings(num_samples=1, max_tokens=4), VerifierSettings()),
            ["problems"],
            EvaluationTrace,
        ),
    ],
)
def test_empty_tables_make_an_empty_table(make_worker: Any, tables: list[str], row_type: type, tmp_path: Path) -> None:
    result = make_worker()({name: [] for name in tables})
    assert kept(result, row_type, tmp_path) == []
    assert result.tokens == 0


def test_sampling_gives_every_problem_its_number_of_different_traces(tmp_path: Path) -> None:
    worker = SampleTraces(SOURCE, SamplingSettings(num_samples=3, max_tokens=12, temperature=50))
    result = worker({"problems": [problem("a"), problem("b")]})
    rows = kept(result, Trace, tmp_path)
    assert [row.trace_id for row in rows] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
    # The two problems have the same prompt, so only the seeds tell their draws apart.
    assert len({tuple(row.token_ids) for row in rows}) == 6
    assert all(row.num_tokens == len(row.token_ids) <= 12 for row in rows)
    assert result.tokens == sum(row.num_tokens for row in rows)
    assert worker({"problems": [problem("b"), problem("a")]}).rows == [*rows[3:], *rows[:3]]


def test_a_prompt_that_nearly_fills_the_context_costs_its_own_row(tmp_path: Path) -> None:
    long = replace(problem("long"), prompt_token_ids=(problem("long").prompt_token_ids * 40)[:1022])
    result = SampleTraces(SOURCE, SamplingSettings(num_samples=1, max_tokens=9))({"problems": [problem("a"), long]})
    a, rest = kept(result, Trace, tmp_path)
    assert rest.num_tokens <= 2
    assert a == SampleTraces(SOURCE, SamplingSettings(num_samples=1, max_tokens=9))({"problems": [problem("a")]}).rows[0]


def test_every_trace_gets_a_verdict_of_its_own_however_odd_the_others_are(tmp_path: Path) -> None:
    texts = {
        "good": GOOD,
        "wrong": GOOD.replace("boxed{78}", "boxed{79}"),
        "no box": "So it is 78.\n</think>\n\n78",
        "empty": "",
        "boxed in its thoughts": "\\boxed{78}\n</think>\n\nThe answer is 78.",
        "huge": GOOD.replace("boxed{78}", "boxed{9^{9^{9^{9^{9}}}}}"),
        "not mathematics": GOOD.replace("boxed{78}", "boxed{\\frac{{{}"),
    }
    traces = [trace(text, index=index) for index, text in enumerate(texts.values())]
    traces.append(trace(GOOD, index=len(texts), finish_reason="length"))
    result = VerifyTraces(SOURCE, VerifierSettings(timeout_seconds=2))({"problems": [problem("p")], "traces": traces})
    rows = kept(result, VerifiedTrace, tmp_path)
    verdicts = dict(zip([*texts, "cut off"], (row.verdict for row in rows), strict=True))
    assert {name: verdicts[name] for name in ("good", "wrong", "no box", "empty", "boxed in its thoughts", "cut off")} == {
        "good": "correct",
        "wrong": "incorrect",
        "no box": "no_answer",
        "empty": "no_answer",
        "boxed in its thoughts": "no_answer",
        "cut off": "incorrect",
    }
    assert verdicts["huge"] in ("incorrect", "unverifiable") and verdicts["not mathematics"] != "correct"
    assert rows[-1].verdict_cause == "truncated"
    assert sum(result.counts[verdict] for verdict in set(verdicts.values())) == len(traces)
    assert [row.trace_id for row in rows] == [one.trace_id for one in traces]


def test_thinking_and_answer_tokens_add_up(tmp_path: Path) -> None:
    texts = [GOOD, "never closed", "\n</think>", ""]
    traces = [trace(text, index=index) for index, text in enumerate(texts)]
    rows = VerifyTraces(SOURCE, VerifierSettings())({"problems": [problem("p")], "traces": traces}).rows
    assert all(row.thinking_tokens + row.answer_tokens == row.num_tokens for row in rows)
    answer = encode("\n\nThe answer is \\boxed{78}.")
    assert [row.answer_tokens for row in rows] == [len(answer) + 1, 0, 1, 0]


def test_selection_keeps_the_shortest_correct_trace_of_each_problem_and_counts_those_without(tmp_path: Path) -> None:
    longer = "Hmm.\n\n" + GOOD
    rows = [
        verified(longer, "correct", "a", 0),
        verified(GOOD, "correct", "a", 1),
        verified("Hm.", "incorrect", "a", 2),
        verified(GOOD, "incorrect", "b", 0),
        verified(GOOD, "unverifiable", "b", 1),
        verified(GOOD, "correct", "c", 0),
    ]
    result = SelectTraces(Shortest())({"verified_traces": rows})
    chosen = kept(result, SelectedTrace, tmp_path)
    assert [(row.trace_id, row.rank, row.num_correct, row.num_sampled) for row in chosen] == [
        ("a/1", 0, 2, 3),
        ("c/0", 0, 1, 1),
    ]
    assert chosen[0].pass_rate == pytest.approx(2 / 3)
    assert result.counts == {"problems with no correct trace": 1, "problems with no incorrect trace": 1}


@pytest.mark.parametrize("rewriter", [KLBound(num_candidates=4), Reliable(num_candidates=4, max_step_tokens=20)])
def test_every_step_is_proposed_in_its_place_whatever_stands_beside_it(rewriter: RewriterSettings, tmp_path: Path) -> None:
    odd = ["", "</think>", "7\n</think>\n\n\\boxed{7}", "a b\n\nnever closed"]
    traces = [selected(GOOD, index=0), *(selected(text, index=1 + index) for index, text in enumerate(odd))]
    result = ProposeSteps(SOURCE, rewriter)({"problems": [problem("p")], "selected_traces": traces})
    rows = kept(result, StepCandidates, tmp_path)
    by_trace = {one.trace_id: [row for row in rows if row.trace_id == one.trace_id] for one in traces}
    assert [len(own) for own in by_trace.values()] == [2, 0, 0, 1, 1]
    assert [row.step_text for row in by_trace["p/0"]] == ["47 + 38 = 85, 85 - 7 = 78.", "So Tom has 78 apples."]
    ids = {one.trace_id: one.token_ids for one in traces}
    for row in rows:
        length = row.token_end - row.token_start
        assert SOURCE.tokens.text(ids[row.trace_id][row.token_start : row.token_end]) == row.step_text
        for candidate in row.candidates:
            assert SOURCE.tokens.text(candidate.token_ids) == candidate.text
            assert "\n\n" not in candidate.text.strip() and "</think>" not in candidate.text
            assert len(candidate.token_ids) < length or isinstance(rewriter, Reliable)
        assert sum(candidate.draws for candidate in row.candidates) <= 4
    assert sum(row.tokens_generated for row in rows) == result.tokens > 0


def test_a_step_gets_the_same_candidates_alone_and_beside_others() -> None:
    worker = ProposeSteps(SOURCE, KLBound(num_candidates=6))
    alone = worker({"problems": [problem("p")], "selected_traces": [selected(GOOD)]}).rows
    others = [selected("Hmm.\n\n" + GOOD, index=index) for index in (1, 2)]
    assert worker({"problems": [problem("p")], "selected_traces": [*others, selected(GOOD)]}).rows[-2:] == alone


def step(own: SelectedTrace, index: int, start: int, end: int, texts: list[str]) -> StepCandidates:
    pool = [Candidate(text, encode(text), 1, draw) for draw, text in enumerate(texts)]
    step_text = SOURCE.tokens.text(own.token_ids[start:end])
    return StepCandidates(own.trace_id, own.problem_id, index, 2, start, end, step_text, pool, 0)


def test_accepted_candidates_take_their_steps_places_and_the_rest_stays(tmp_path: Path) -> None:
    own, other = selected(GOOD), selected("Hmm.\n\n" + GOOD, index=1)
    first = len(encode("47 + 38 = 85, 85 - 7 = 78."))
    second = first + 1, first + 1 + len(encode("So Tom has 78 apples."))
    steps = [step(own, 0, 0, first, ["78."]), step(own, 1, *second, ["So 78.", "Tom has 78 apples and no more at all."])]
    # A bound that anything passes: the shortest candidate wins; what is not shorter than its step can't.
    inputs: Mapping[str, list[Any]] = {"problems": [problem("p")], "selected_traces": [own, other], "step_candidates": steps}
    result = AcceptSteps(SOURCE, KLBound(kl_bound=1e9))(inputs)
    changed, untouched = kept(result, RefinedTrace, tmp_path)
    assert changed.text == "78.\n\nSo 78.\n</think>\n\nThe answer is \\boxed{78}."
    assert changed.token_ids == [*encode(changed.text), EOS]
    assert (changed.original_text, changed.original_num_tokens) == (GOOD, own.num_tokens)
    assert [(d.kept_text, d.rewritten, d.num_candidates, d.num_scored) for d in changed.decisions] == [
        ("78.", True, 1, 1),
        ("So 78.", True, 2, 1),
    ]
    assert all(decision.kl > 0 for decision in changed.decisions)
    assert (untouched.token_ids, untouched.decisions) == (other.token_ids, [])
    assert result.counts == {
        "steps": 2,
        "steps rewritten": 2,
        "candidates scored": 2,
        "tokens saved": own.num_tokens - changed.num_tokens,
    }


@pytest.mark.parametrize("rewriter", [KLBound(kl_bound=1e-12), NoRewrite()])
def test_where_nothing_is_accepted_a_trace_keeps_its_tokens(rewriter: RewriterSettings) -> None:
    own = selected(GOOD)
    steps = [step(own, 0, 0, len(encode("47 + 38 = 85, 85 - 7 = 78.")), ["Hmm.", "78."])]
    inputs = {"problems": [problem("p")], "selected_traces": [own], "step_candidates": steps}
    (row,) = AcceptSteps(SOURCE, rewriter)(inputs).rows
    assert (row.token_ids, row.text) == (own.token_ids, own.text)
    assert not any(decision.rewritten or decision.kl for decision in row.decisions)


def test_pairs_are_built_per_problem_and_those_without_are_counted_by_cause(tmp_path: Path) -> None:
    problems = [problem(name) for name in ("pairs", "all correct", "none correct", "wrong is shorter")]
    chosen = [refined(GOOD, name) for name in ("pairs", "all correct", "wrong is shorter")]
    longer = "Hmm, let me think.\n\n" + GOOD
    traces = [
        verified(GOOD, "correct", "pairs", 0),
        verified(longer, "incorrect", "pairs", 1),
        verified(longer, "unverifiable", "pairs", 2),
        verified(GOOD, "correct", "all correct", 0),
        verified(longer, "incorrect", "none correct", 0),
        verified(GOOD, "correct", "wrong is shorter", 0),
        verified("Hm.", "incorrect", "wrong is shorter", 1),
    ]
    inputs = {"problems": problems, "refined_traces": chosen, "verified_traces": traces}
    result = BuildPairs(PairingSettings(), with_rejected=True)(inputs)
    (pair,) = kept(result, PreferencePair, tmp_path)
    assert (pair.pair_id, pair.chosen, pair.rejected) == ("pairs/0>pairs/1", GOOD, longer)
    assert pair.prompt_token_ids == problem("pairs").prompt_token_ids
    assert result.counts == {
        "problems with pairs": 1,
        "problems dropped: no incorrect trace": 1,
        "problems dropped: no correct trace": 1,
        "problems dropped: no incorrect trace longer than the chosen": 1,
    }
    alone = BuildPairs(PairingSettings(), with_rejected=False)(inputs)
    assert [(row.chosen_trace_id, row.rejected_trace_id) for row in alone.rows] == [(one.trace_id, None) for one in chosen]


def test_reference_scores_are_the_models_own_log_probabilities_with_or_without_a_rejected_side(tmp_path: Path) -> None:
    own, wrong = refined(GOOD, "a"), verified("Hmm, let me think.\n\n" + GOOD, "incorrect", "a", 1)
    inputs = {"problems": [problem("a")], "refined_traces": [own], "verified_traces": [wrong]}
    pairs = BuildPairs(PairingSettings(), with_rejected=True)(inputs).rows
    alone = BuildPairs(PairingSettings(), with_rejected=False)(inputs).rows
    result = ScoreReference(SOURCE)({"preference_pairs": [*pairs, *alone]})
    both, one = kept(result, ScoredPair, tmp_path)
    model = load_model(demo_model_dir(), torch.float64)

    def logps(prompt: list[int], completion: list[int]) -> float:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return float(torch.log_softmax(logits_TV, -1).gather(1, torch.tensor(completion)[:, None]).sum())

    assert both.ref_chosen_logps == pytest.approx(logps(both.prompt_token_ids, own.token_ids), rel=1e-4)
    assert both.ref_rejected_logps == pytest.approx(logps(both.prompt_token_ids, wrong.token_ids), rel=1e-4)
    assert (one.ref_chosen_logps, one.ref_rejected_logps) == (both.ref_chosen_logps, None)
    # The chosen side, which both rows share, is scored once.
    assert result.tokens == own.num_tokens + wrong.num_tokens


def test_evaluation_decodes_every_problem_greedily_once_and_by_sampling_as_often_as_asked(tmp_path: Path) -> None:
    worker = EvaluateModel(
        SOURCE, EvaluationSettings(num_samples=2, max_tokens=10, temperature=50, top_p=1), VerifierSettings()
    )
    rows = kept(worker({"problems": [problem("a"), problem("b")]}), EvaluationTrace, tmp_path)
    assert [(row.problem_id, row.decoding, row.sample_index) for row in rows] == [
        ("a", "greedy", 0),
        ("b", "greedy", 0),
        ("a", "sampled", 0),
        ("a", "sampled", 1),
        ("b", "sampled", 0),
        ("b", "sampled", 1),
    ]
    # The same prompt decoded greedily is the same text; sampled, it is not.
    assert rows[0].token_ids == rows[1].token_ids
    assert len({tuple(row.token_ids) for row in rows[2:]}) == 4


class Doubling:
    """A worker that fails as its rows say."""

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[Problem]:
        for row in inputs["problems"]:
            if row.question == "refused":
                raise EngineError("the engine says no")
            if row.question == "broken":
                raise ZeroDivisionError("division by zero")
        return ShardResult(inputs["problems"], tokens=7, counts={"odd": 2})


def doubling_stage(folder: Path, shards: list[list[str]]) -> Stage[Problem]:
    problems = Table(folder / "problems", Problem)
    for shard, questions in enumerate(shards):
        problems.write_part(shard, [replace(problem("p"), question=question) for question in questions], {})
    return Stage("doubled", Table(folder / "doubled", Problem), {"problems": problems}, len(shards), Doubling, {}, False)


def batch(*shards: int) -> dict[str, list[Any]]:
    """What Ray hands an actor for shards that nothing has failed on yet."""
    rows = [asdict(ShardReport(shard)) for shard in shards]
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_a_worker_reads_its_shards_and_writes_parts_with_their_counts(tmp_path: Path) -> None:
    stage = doubling_stage(tmp_path, [["x", "y"], []])
    report = ShardActor(stage)(batch(1, 0))
    assert (report["shard"], report["error"]) == ([1, 0], ["", ""])
    assert [stage.output.part_counts(shard)["rows"] for shard in (1, 0)] == [0, 2]
    assert [row.question for row in stage.output.read_part(0)] == ["x", "y"]
    counts = stage.output.part_counts(0)
    assert {name: counts[name] for name in ("rows", "tokens", "odd")} == {"rows": 2, "tokens": 7, "odd": 2}


def test_a_shard_that_fails_is_told_and_leaves_the_others_alone(tmp_path: Path) -> None:
    stage = doubling_stage(tmp_path, [["refused"], ["x"], ["broken"]])
    report = ShardActor(stage)(batch(0, 1, 2, 3))
    assert report["error_type"] == ["EngineError", "", "", TableError.__name__]
    refused, fine, broken, missing = report["error"]
    assert (refused, fine) == ("the engine says no", "")
    log = stage.output.path / "error-shard-00002.txt"
    assert broken == f"ZeroDivisionError: division by zero (traceback in {log})"
    assert "raise ZeroDivisionError" in log.read_text()
    assert "part-00003.parquet: the part is missing" in missing
    assert [stage.output.has_part(shard) for shard in range(4)] == [False, True, False, False]


def test_a_failed_test_of_a_program_is_counted_under_its_cause_and_not_under_its_number() -> None:
    causes = ["wrong_answer: test 3", "wrong_answer: test 9", "exception: KeyError", None]
    rows = [replace(verified(GOOD, "incorrect", index=i), verdict_cause=cause) for i, cause in enumerate(causes)]
    assert verdict_counts(rows) == {"incorrect": 4, "incorrect: wrong_answer": 2, "incorrect: exception: KeyError": 1}
