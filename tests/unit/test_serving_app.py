"""The routes over real sockets: answers and streams, numbers, engines that fail, clients that leave, a server that stops."""

import http.client
import json
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scripted_source import Step, demo_tokens, says
from tests.unit.served_app import KEY, Reply, Served, ask, chat, head, served, until
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.generation import Piece, ServedRequest

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
ANSWER = "The answer is 5."


def endless(_: ServedRequest) -> Iterable[Step]:
    token = demo_tokens("a")[0]
    while True:
        yield 0.005
        yield Piece((token,))


SCRIPTS = {
    "demo": [says()],
    "team/small": [says()],
    "endless": [endless],
    "silent": [[60.0]],
    "broken": [[EngineError("the GPU of ann is on fire")]],
    "breaking": [[*says()[:3], EngineError("the GPU of ann is on fire")]],
    "buggy": [[ZeroDivisionError("What is 2 + 3?")]],
}
LIMITS = {"max_body_bytes": 20_000, "body_timeout_seconds": 0.3, "max_concurrency": 4, "max_queued": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(SCRIPTS, tmp_path_factory.mktemp("log") / "access.jsonl", limits=LIMITS) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_stays_behind(server: Served) -> Iterator[None]:
    yield
    until(lambda: server.app.state.in_flight() == 0)
    assert not any(source.open for source in server.sources.values())
    numbers = ask(server, "/metrics").body.decode().splitlines()
    assert "tokensqueeze_choices_running 0.0" in numbers
    assert "tokensqueeze_choices_queued 0.0" in numbers


# --- what is answered


def test_a_chat_is_answered_with_reasoning_apart(server: Served):
    reply = ask(server, CHAT, chat())
    assert reply.status == 200
    message = reply.json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": ANSWER, "reasoning_content": "Let me add."}
    assert reply.headers["content-type"] == "application/json"


def test_a_text_is_continued(server: Served):
    reply = ask(server, TEXT, {"model": "demo", "prompt": "2 + 3 ="})
    assert reply.json()["choices"][0]["text"].endswith(ANSWER)


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, chat(stream=True)), (TEXT, {"model": "demo", "prompt": "2", "stream": True})]
)
def test_a_stream_is_events_and_ends_with_done(server: Served, path: str, body: dict[str, Any]):
    reply = ask(server, path, body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-accel-buffering"] == "no"
    *chunks, done = reply.events
    assert done == "[DONE]"
    assert len(chunks) > 5
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    said = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    assert said.endswith(ANSWER)
    assert [choice["finish_reason"] for choice in choices if choice.get("finish_reason")] == ["stop"]


def test_models_are_listed_and_described_by_name_even_with_a_slash(server: Served):
    assert [entry["id"] for entry in ask(server, "/v1/models").json()["data"]] == list(SCRIPTS)
    assert ask(server, "/v1/models/team/small").json()["id"] == "team/small"
    assert ask(server, "/v1/models/team%2Fsmall").json()["id"] == "team/small"
    reply = ask(server, "/v1/models/gpt-4")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


def test_every_response_has_a_request_id_and_forbids_sniffing_and_caching(server: Served):
    replies = [ask(server, CHAT, chat()), ask(server, CHAT, chat("nobody")), ask(server, "/"), ask(server, "/none")]
    assert len({reply.headers["x-request-id"] for reply in replies}) == 4
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"


def test_the_page_needs_no_key_and_may_load_nothing_from_elsewhere(server: Served):
    kinds = {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css"}
    for path, kind in kinds.items():
        reply = ask(server, path, headers={})
        assert reply.status == 200
        assert reply.headers["content-type"] == f"{kind}; charset=utf-8"
        policy = reply.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)
        assert "unsafe" not in reply.headers["content-security-policy"]


def test_the_description_names_every_route_and_no_other(server: Served):
    described = {
        (path, method.upper())
        for path, methods in ask(server, "/openapi.json", headers={}).json()["paths"].items()
        for method in methods
    }
    routes = {
        (route.path.replace(":path", ""), method)  # type: ignore[attr-defined]
        for route in server.app.routes
        for method in route.methods  # type: ignore[attr-defined]
    }
    assert described == routes - {("/openapi.json", "GET")}


# --- health and numbers


def logged(server: Served, reply: Reply) -> dict[str, Any]:
    """Return a request's line, which is written behind the last byte of its answer."""
    request_id = reply.headers["x-request-id"]
    until(lambda: any(line["request_id"] == request_id for line in server.log()))
    return next(line for line in server.log() if line["request_id"] == request_id)


def test_a_server_is_ready_when_every_model_has_an_engine(server: Served):
    assert ask(server, "/health", headers={}).json() == {"status": "alive"}
    assert ask(server, "/ready", headers={}).status == 200
    server.sources["silent"].engines = 0
    try:
        reply = ask(server, "/ready", headers={})
        assert reply.status == 503
        assert reply.json()["status"] == "loading"
        assert reply.json()["engines"]["silent"] == 0
        assert 'tokensqueeze_replicas_ready{model="silent"} 0.0' in ask(server, "/metrics").body.decode()
    finally:
        server.sources["silent"].engines = 1


def test_numbers_need_a_key(server: Served):
    assert ask(server, "/metrics", headers={}).status == 401
    reply = ask(server, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")


def test_a_request_is_logged_and_counted_without_its_text(server: Served):
    reply = ask(server, CHAT, chat(stream=True, n=2))
    line = logged(server, reply)
    thought, answered = len(demo_tokens("Let me add.\n</think>")), len(demo_tokens("\n\nThe answer is 5.<|im_end|>"))
    assert line["reasoning_tokens"] == 2 * thought
    assert line["answer_tokens"] == 2 * answered
    assert (line["key"], line["route"], line["model"], line["status"]) == ("ann", CHAT, "demo", 200)
    assert (line["stream"], line["choices"], line["finish_reasons"]) == (True, 2, ["stop", "stop"])
    assert 0 < line["ttft_seconds"] <= line["duration_seconds"]
    assert "What is" not in server.log_path.read_text()
    assert KEY not in server.log_path.read_text()


def test_texts_are_logged_where_the_settings_ask_for_them(tmp_path: Path):
    with served({"demo": [says()]}, tmp_path / "log", log_prompts=True) as server:
        ask(server, CHAT, chat())
        until(lambda: len(server.log()) == 1)
    assert "What is 2 + 3?" in server.log()[0]["prompt"]
    assert ANSWER in server.log()[0]["answer"]


# --- engines that fail


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_before_the_first_token_is_a_503(server: Served, stream: bool):
    reply = ask(server, CHAT, chat("broken", stream=stream))
    assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
    assert reply.headers["retry-after"] == "1"
    assert "fire" not in reply.error["message"]


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error_and_without_done(server: Served):
    reply = ask(server, CHAT, chat("breaking", stream=True))
    assert reply.status == 200
    assert reply.events[-1]["error"]["code"] == "engine_unavailable"
    assert "[DONE]" not in reply.events
    assert logged(server, reply)["error"] == "engine_unavailable"
    assert ask(server, CHAT, chat("breaking")).status == 503


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_nobody_foresaw_says_nothing_of_the_inside(
    server: Served, stream: bool, caplog: pytest.LogCaptureFixture
):
    reply = ask(server, CHAT, chat("buggy", stream=stream))
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    request_id = reply.headers["x-request-id"]
    assert request_id in reply.error["message"]
    assert b"ZeroDivision" not in reply.body
    assert request_id in caplog.text and "ZeroDivisionError" in caplog.text and "scripted_source.py" in caplog.text
    assert "What is" not in caplog.text


# --- clients that leave


def leaves(server: Served, body: dict[str, Any], *, behind: bytes = b"") -> None:
    """Ask, wait for some bytes of the answer, and close the connection."""
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head(f"Content-Length: {len(data)}") + data)
        until(lambda: bool(server.sources[body["model"]].open))
        received = b""
        while behind and behind not in received:
            received += connection.recv(65536)


@pytest.mark.parametrize(
    ("body", "behind"),
    [
        (chat("endless", stream=True, n=2), b"data: "),
        (chat("silent", stream=True), b""),
        (chat("endless"), b""),
        (chat("silent", n=3), b""),
    ],
)
def test_a_client_that_leaves_frees_its_places_within_a_second(server: Served, body: dict[str, Any], behind: bytes):
    source = server.sources[body["model"]]
    closed, lines = len(source.closed), len(server.log())
    leaves(server, body, behind=behind)
    until(lambda: len(source.closed) == closed + body.get("n", 1))
    until(lambda: len(server.log()) > lines)
    assert server.log()[-1]["status"] == 499


# --- limits on time and number


def test_an_answer_that_takes_too_long_is_ended(tmp_path: Path):
    with served(
        {"endless": [endless], "silent": [[60.0]]}, tmp_path / "log", limits={"request_timeout_seconds": 0.2}
    ) as server:
        for body in (chat("endless"), chat("silent"), chat("silent", stream=True)):
            reply = ask(server, CHAT, body)
            assert (reply.status, reply.error["code"]) == (504, "request_timeout")
        events = ask(server, CHAT, chat("endless", stream=True)).events
        assert events[-1]["error"]["code"] == "request_timeout"
        assert len(events) > 2
        assert not any(source.open for source in server.sources.values())


def begin(server: Served, body: dict[str, Any]) -> socket.socket:
    """Ask and leave the connection open, the answer unread."""
    data = json.dumps(body).encode()
    before = len(server.sources[body["model"]].requests)
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    connection.sendall(head(f"Content-Length: {len(data)}") + data)
    until(lambda: len(server.sources[body["model"]].requests) == before + body.get("n", 1))
    return connection


def test_a_key_with_too_much_under_way_is_told_to_come_again(server: Served):
    with begin(server, chat("endless", stream=True, n=3)) as connection:
        connection.recv(1)
        until(lambda: "tokensqueeze_choices_queued 0.0" in ask(server, "/metrics").body.decode())
        reply = ask(server, CHAT, chat(n=2))
        assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (429, "concurrency_limit", "1")
        assert ask(server, CHAT, chat()).status == 200
    until(lambda: server.app.state.in_flight() == 0)
    assert ask(server, CHAT, chat(n=2)).status == 200


def test_a_full_queue_is_told_to_come_again(server: Served):
    with begin(server, chat("silent", n=3)):
        reply = ask(server, CHAT, chat())
        assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (429, "queue_full", "1")
    until(lambda: server.app.state.in_flight() == 0)
    assert ask(server, CHAT, chat()).status == 200


# --- a server that stops


def answer_of(connection: socket.socket) -> Reply:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Reply(response.status, {}, response.read())


def test_a_draining_server_ends_what_is_under_way_and_takes_nothing_new(tmp_path: Path):
    with served({"demo": [says(pause=0.02)]}, tmp_path / "log") as server:
        with begin(server, chat(stream=True)) as connection:
            connection.recv(1, socket.MSG_PEEK)
            server.app.state.drain()
            assert server.app.state.in_flight() == 1
            reply = ask(server, CHAT, chat())
            assert (reply.status, reply.error["code"], reply.headers["connection"]) == (503, "draining", "close")
            assert reply.headers["retry-after"] == "1"
            assert ask(server, "/health").status == 200
            assert (ask(server, "/ready").status, ask(server, "/ready").json()["status"]) == (503, "draining")
            assert answer_of(connection).events[-1] == "[DONE]"
        until(lambda: server.app.state.in_flight() == 0)


def test_what_has_not_ended_when_the_server_must_stop_is_told_so(tmp_path: Path):
    with served({"endless": [endless], "silent": [[60.0]]}, tmp_path / "log", limits={"max_concurrency": 9}) as server:
        stream, whole = begin(server, chat("endless", stream=True, max_tokens=900)), begin(server, chat("silent"))
        with stream, whole:
            server.server.config.timeout_graceful_shutdown = 0
            server.app.state.drain()
            server.server.should_exit = True
            assert answer_of(stream).events[-1]["error"]["code"] == "stopping"
            assert answer_of(whole).error["code"] == "stopping"
    assert [line["error"] for line in server.log()] == ["stopping"] * 2
    assert not any(source.open for source in server.sources.values())
