"""The workers of an evaluation, called directly with rows: forced thinking budgets, and a model behind a server.

The demo's model stands in for a model; nothing here depends on what it writes. The server is a real one on loopback that says
what it is told to.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tokensqueeze.config import EndpointSettings, EngineSettings, EvaluationSettings, ForcingSettings, VerifierSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.engines.checkpoint import context_length, demo_model_dir, load_tokenizer
from tokensqueeze.engines.endpoint import served_model
from tokensqueeze.errors import EngineError
from tokensqueeze.fingerprint import seed_of
from tokensqueeze.schema import EvaluationTrace, Problem
from tokensqueeze.stages.evaluate_endpoint import EvaluateEndpoint
from tokensqueeze.stages.evaluate_model import EvaluateModel
from tokensqueeze.stages.force_budgets import ForceBudgets
from tokensqueeze.stages.model_source import ModelSource

SOURCE = ModelSource(demo_model_dir(), EngineSettings(max_batch_size=32), "float32", "</think>")
EVALUATION = EvaluationSettings(num_samples=2, greedy=True, temperature=0.7, top_p=1.0, max_tokens=300)
CLOSE = "\n</think>\n\n"


def encode(text: str) -> list[int]:
    return load_tokenizer(demo_model_dir())(text, add_special_tokens=False).input_ids


@cache
def problem(problem_id: str = "p") -> Problem:
    question = "Tom has 47 apples. Tom buys 38 apples and then loses 7. How many apples?"
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    return Problem(problem_id, question, "78", prompt, encode(prompt))


@cache
def evaluated() -> tuple[EvaluationTrace, ...]:
    return tuple(EvaluateModel(SOURCE, EVALUATION, VerifierSettings())({"problems": [problem()]}).rows)


def force(traces: list[EvaluationTrace], **settings: Any) -> Any:
    forcing = ForcingSettings.model_validate(settings)
    return ForceBudgets(SOURCE, forcing, EVALUATION, VerifierSettings())({"problems": [problem()], "evaluation": traces})


def test_no_trace_is_forced_at_a_budget_that_all_keep():
    result = force(list(evaluated()), thinking_budgets=[100_000])
    sampled = [trace for trace in evaluated() if trace.decoding == "sampled"]
    assert len(result.rows) == len(sampled) == 2
    for row, own in zip(result.rows, sampled, strict=True):
        assert (row.was_forced, row.thinking_budget, row.trace_id) == (False, 100_000, f"{own.trace_id}/100000")
        assert replace(EvaluationTrace(**_evaluation_part(row)), trace_id=own.trace_id) == own
    assert result.counts["forced"] == 0 and result.tokens == 0


def test_a_trace_over_the_budget_is_cut_there_closed_and_answered_by_the_model():
    sampled = [trace for trace in evaluated() if trace.decoding == "sampled"]
    rows = force(list(evaluated()), thinking_budgets=[5], answer_tokens=12).rows
    engine, close = SOURCE.engine(), encode(CLOSE)
    for row, own in zip(rows, sampled, strict=True):
        beginning = [*own.token_ids[:5], *close]
        request = GenerationRequest(
            [*problem().prompt_token_ids, *beginning], 12, 0.7, 1.0, seed_of("force", 0, "p", own.sample_index, 5)
        )
        [answer] = engine.generate([request])
        assert row.was_forced
        assert row.token_ids == [*beginning, *answer.token_ids]
        assert row.num_tokens == 5 + len(close) + len(answer.token_ids)
        assert (row.thinking_tokens, row.answer_tokens) == (5 + len(close), len(answer.token_ids))
        assert row.finish_reason == answer.finish_reason


def test_each_budget_has_a_row_of_every_trace_and_draws_of_its_own():
    result = force(list(evaluated()), thinking_budgets=[5, 9, 100_000], answer_tokens=4)
    assert [row.thinking_budget for row in result.rows] == [5, 5, 9, 9, 100_000, 100_000]
    assert len({row.trace_id for row in result.rows}) == 6
    assert result.counts["forced"] == 4


def test_without_samples_the_greedy_traces_are_forced():
    greedy = [trace for trace in evaluated() if trace.decoding == "greedy"]
    assert [row.decoding for row in force(greedy, thinking_budgets=[5], answer_tokens=4).rows] == ["greedy"]


def test_a_forced_close_that_fills_the_context_leaves_no_answer():
    room = context_length(demo_model_dir()) - len(problem().prompt_token_ids)
    endless = replace(evaluated()[-1], token_ids=encode("a") * room, num_tokens=room, finish_reason="length")
    [row] = force([endless], thinking_budgets=[room - 1], answer_tokens=4).rows
    assert (row.was_forced, row.finish_reason, row.answer_tokens, row.verdict) == (True, "length", 0, "incorrect")


def test_no_traces_make_no_forced_ones():
    assert (
        ForceBudgets(SOURCE, ForcingSettings(thinking_budgets=[5]), EVALUATION, VerifierSettings())(
            {"problems": [], "evaluation": []}
        ).rows
        == []
    )


def _evaluation_part(row: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name not in ("thinking_budget", "was_forced")}


Answer = tuple[int, dict[str, Any]]
"""A status and a body."""


@contextmanager
def server(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve chat completions, and a list of two models; give the address, and the requests as they come in."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"object": "list", "data": [{"id": "big", "object": "model"}, {"id": "small", "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(body | {"key": self.headers["Authorization"]})
            self.reply(*answer(body))

        def reply(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None: ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1", requests
    finally:
        listening.shutdown()
        listening.server_close()


def completion(message: dict[str, Any], usage: dict[str, Any] | None, finish_reason: str = "stop") -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return 200, {"id": "c", "object": "chat.completion", "created": 0, "model": "big", "choices": [choice], "usage": usage}


def usage(num_tokens: int, reasoning_tokens: int | None = None) -> dict[str, Any]:
    counts: dict[str, Any] = {"prompt_tokens": 9, "completion_tokens": num_tokens, "total_tokens": 9 + num_tokens}
    return counts | ({} if reasoning_tokens is None else {"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}})


def evaluate_at(url: str, *, num_samples: int = 1, **endpoint: Any) -> Any:
    settings = EndpointSettings.model_validate({"url": url, "max_retries": 0, **endpoint})
    evaluation = EvaluationSettings(num_samples=num_samples, greedy=False, temperature=0.6, max_tokens=50)
    worker = EvaluateEndpoint(settings, "big", "secret", "</think>", evaluation, VerifierSettings())
    return worker({"problems": [Problem("p", "q", "78", "How many apples?", [])]})


def test_a_servers_own_counts_are_the_lengths():
    message = {"content": "It is \\boxed{78}.", "reasoning_content": "47 + 38 = 85, 85 - 7 = 78."}
    with server(lambda body: completion(message, usage(31, 22))) as (url, requests):
        result = evaluate_at(url, num_samples=3)
    assert [row.trace_id for row in result.rows] == ["p/0", "p/1", "p/2"]
    for row in result.rows:
        assert row.verdict == "correct"
        assert (row.num_tokens, row.thinking_tokens, row.answer_tokens) == (31, 22, 9)
        assert row.text == "47 + 38 = 85, 85 - 7 = 78.</think>It is \\boxed{78}."
    assert result.tokens == 93
    assert len({request["seed"] for request in requests}) == 3
    [asked] = {
        json.dumps({name: value for name, value in request.items() if name != "seed"}, sort_keys=True) for request in requests
    }
    assert json.loads(asked) == {
        "model": "big",
        "messages": [{"role": "user", "content": "How many apples?"}],
        "max_tokens": 50,
        "temperature": 0.6,
        "top_p": 0.95,
        "key": "Bearer secret",
    }


def test_thinking_is_counted_by_the_models_tokenizer_where_the_server_does_not_tell():
    thinking, answer = "47 + 38 = 85.</think>", "It is \\boxed{85}."
    whole = encode(thinking + answer)
    with server(lambda body: completion({"content": thinking + answer}, usage(len(whole)))) as (url, _):
        [row] = evaluate_at(url, tokenizer=str(demo_model_dir())).rows
        with pytest.raises(EngineError, match=r"endpoint\.tokenizer"):
            evaluate_at(url)
    assert row.verdict == "incorrect"
    assert (row.num_tokens, row.answer_tokens) == (len(whole), len(encode(answer)))
    assert len(whole) < len(thinking + answer), "tokens, not characters"


def test_a_server_that_counts_no_reasoning_tokens_though_it_sends_reasoning_does_not_tell():
    message = {"reasoning_content": "47 + 38 = 85.", "content": "It is \\boxed{85}."}
    with server(lambda body: completion(message, usage(40, 0))) as (url, _):
        [row] = evaluate_at(url, tokenizer=str(demo_model_dir())).rows
    assert row.thinking_tokens == 40 - len(encode("It is \\boxed{85}."))


def test_a_completion_cut_off_while_it_thinks_is_all_thinking():
    with server(lambda body: completion({"content": None, "reasoning_content": "hm"}, usage(50, 50), "length")) as (url, _):
        [row] = evaluate_at(url).rows
    assert (row.text, row.thinking_tokens, row.answer_tokens) == ("hm", 50, 0)
    assert (row.verdict, row.verdict_cause) == ("incorrect", "truncated")


def test_an_answer_without_thinking_is_no_thinking():
    with server(lambda body: completion({"content": "\\boxed{78}"}, usage(5))) as (url, _):
        [row] = evaluate_at(url).rows
    assert (row.verdict, row.thinking_tokens, row.answer_tokens) == ("correct", 0, 5)


def test_what_a_content_filter_ended_is_unverifiable():
    with server(lambda body: completion({"content": "\\boxed{78}"}, usage(5), "content_filter")) as (url, _):
        [row] = evaluate_at(url).rows
    assert (row.verdict, row.verdict_cause) == ("unverifiable", "finish_reason: content_filter")


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ((401, {"error": {"message": "no"}}), "OPENAI_API_KEY"),
        ((400, {"error": {"message": "too long"}}), "400.*too long"),
        ((500, {"error": {"message": "broken"}}), "500.*broken"),
        ((200, {"id": "c", "object": "chat.completion", "created": 0, "model": "big", "choices": []}), "without a choice"),
    ],
)
def test_a_servers_refusal_is_told_with_its_address(reply: Answer, told: str):
    with server(lambda body: reply) as (url, _), pytest.raises(EngineError, match=f"(?s){url}.*{told}"):
        evaluate_at(url)


def test_what_may_pass_is_asked_again():
    replies = iter([(503, {"error": {"message": "busy"}}), completion({"content": "\\boxed{78}"}, usage(5))])
    with server(lambda body: next(replies)) as (url, requests):
        [row] = evaluate_at(url, max_retries=1).rows
    assert (row.verdict, len(requests)) == ("correct", 2)


def test_a_server_that_is_not_there_is_told():
    with server(lambda body: (200, {})) as (url, _):
        pass
    with pytest.raises(EngineError, match="no server answers there"):
        served_model(EndpointSettings(url=url, max_retries=0), None)


def test_a_model_is_asked_for_by_a_name_that_the_server_has():
    with server(lambda body: (200, {})) as (url, _):
        assert served_model(EndpointSettings(url=url, model="small"), None) == "small"
        with pytest.raises(EngineError, match=r"endpoint\.model: tiny: not there; .* serves big, small"):
            served_model(EndpointSettings(url=url, model="tiny"), None)
        with pytest.raises(EngineError, match=r"endpoint\.model is not set"):
            served_model(EndpointSettings(url=url), None)
