"""What the routes refuse, over real sockets: in one shape, with the right status, and never a 500."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scripted_source import says
from tests.unit.served_app import AUTH, EXPIRED_KEY, KEY, Reply, Served, ask, chat, head, send_raw, served

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
ANSWER = "The answer is 5."
LIMITS = {"max_body_bytes": 20_000, "body_timeout_seconds": 0.3, "max_choices": 8}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served({"demo": [says()]}, tmp_path_factory.mktemp("log") / "access.jsonl", limits=LIMITS) as running:
        yield running
        assert running.app.state.in_flight() == 0
        assert not [line for line in running.log() if line["status"] == 500]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/v1", "/v1/embeddings", "/app.py", "/../app.py", "/page/page.js"])
def test_what_is_not_offered_is_not_found_with_or_without_a_key(server: Served, path: str):
    for headers in ({}, AUTH):
        reply = ask(server, path, headers=headers)
        assert (reply.status, reply.error["type"]) == (404, "not_found_error")


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", CHAT, "POST"), ("DELETE", "/v1/models", "GET"), ("PUT", "/", "GET")]
)
def test_another_method_is_told_which_is_taken(server: Served, method: str, path: str, allowed: str):
    reply = ask(server, path, method=method)
    assert (reply.status, reply.headers["allow"], reply.error["code"]) == (405, allowed, "method_not_allowed")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer no"}, {"Authorization": KEY}])
def test_no_key_or_a_wrong_one_is_refused(server: Served, headers: dict[str, str]):
    for reply in (ask(server, CHAT, chat(), headers=headers), ask(server, "/v1/models", headers=headers)):
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"


def test_an_expired_key_is_told_so(server: Served):
    reply = ask(server, CHAT, chat(), headers={"Authorization": f"Bearer {EXPIRED_KEY}"})
    assert (reply.status, reply.error["code"]) == (401, "expired_api_key")


BAD_JSON = {
    "nothing": b"",
    "cut off": b'{"model": "demo"',
    "binary": bytes(range(256)),
    "not UTF-8": b'{"model": "d\xe9mo"}',
    "UTF-16": json.dumps(chat()).encode("utf-16"),
    "NaN": json.dumps(chat(temperature=float("nan"))).encode(),
    "infinity": json.dumps(chat(user=float("inf"))).encode(),
    "nested": b"[" * 15_000,
    "nested where it is ignored": b'{"model": "demo", "messages": [{"role": "user", "content": "?"}], "metadata": %s1%s}'
    % (b"[" * 9000, b"]" * 9000),
    "a name twice": b'{"model": "demo", "model": "endless", "messages": [{"role": "user", "content": "?"}]}',
    "half a character": b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "a number of thousands of digits": b'{"model": "demo", "seed": %s}' % (b"9" * 9000),
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_is_no_json_is_refused(server: Served, path: str, body: bytes):
    reply = ask(server, path, body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ("text", None),
        (None, None),
        ({}, "model"),
        (chat(temperature=3), "temperature"),
        (chat(temperature="1"), "temperature"),
        (chat(max_tokens=-1), "max_tokens"),
        (chat(max_tokens=10**30), "max_tokens"),
        (chat(seed=1e300), "seed"),
        (chat(n=0), "n"),
        (chat(n=100), "n"),
        (chat(thinking_budget=-5), "thinking_budget"),
        (chat(temprature=1), "temprature"),
        (chat(stop=["x"] * 3000), "stop"),
        (chat(stream_options={"include_usage": "yes"}), "stream_options.include_usage"),
        ({"model": "demo", "messages": [{"role": "user", "content": "?"}, {"role": "user"}]}, "messages.1.content"),
        ({"model": "demo", "messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content"),
        ({**chat(), "\ud800": 1}, None),
    ],
)
def test_a_field_that_is_wrong_is_named(server: Served, body: Any, param: str | None):
    reply = ask(server, CHAT, json.dumps(body).encode())
    assert (reply.status, reply.error["type"], reply.error["param"]) == (400, "invalid_request_error", param)


def test_a_long_prompt_is_refused_by_its_tokens_and_holds_nobody_up(tmp_path: Path):
    with served({"demo": [says()]}, tmp_path / "log") as server:
        asked = threading.Thread(target=lambda: replies.append(ask(server, CHAT, chat(messages=long))))
        replies: list[Reply] = []
        long = [{"role": "user", "content": "word and " * 100_000}]
        asked.start()
        meanwhile = 0
        while asked.is_alive():
            assert ask(server, CHAT, chat()).status == 200
            meanwhile += 1
        asked.join()
    assert (replies[0].status, replies[0].error["code"]) == (400, "context_length_exceeded")
    assert meanwhile > 3


def test_a_message_repeats_the_value_but_never_all_of_a_long_one(server: Served):
    assert "-1" in ask(server, CHAT, chat(max_tokens=-1)).error["message"]
    assert len(ask(server, CHAT, chat(temperature="x" * 9000)).error["message"]) < 300


def test_an_unknown_model_is_told_which_there_are(server: Served):
    reply = ask(server, CHAT, chat("gpt-4"))
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert "demo" in reply.error["message"]


def test_a_body_that_is_not_said_to_be_json_is_refused(server: Served):
    reply = ask(server, CHAT, json.dumps(chat()).encode(), headers=AUTH | {"Content-Type": "text/plain"})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


# --- bodies as bytes on a socket


def test_a_key_is_asked_for_before_the_body_is_read(server: Served):
    reply = send_raw(server, head("Content-Length: 19000", key="wrong"))
    assert reply.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in reply


def test_a_body_that_says_it_is_too_long_is_refused_before_it_comes(server: Served):
    assert send_raw(server, head("Content-Length: 20001")).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_on_sending_still_hears_that_its_body_is_too_long(server: Served):
    reply = ask(server, CHAT, b" " * 5_000_000)
    assert (reply.status, reply.error["code"]) == (413, "body_too_long")


def test_a_body_in_chunks_is_counted(server: Served):
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    assert send_raw(server, head("Transfer-Encoding: chunked"), chunk * 25).startswith(b"HTTP/1.1 413 ")


def test_a_body_in_chunks_is_answered(server: Served):
    body = json.dumps(chat()).encode()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    reply = send_raw(server, head("Transfer-Encoding: chunked", "Connection: close"), chunks)
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert ANSWER.encode() in reply


def test_a_body_that_comes_too_slowly_is_refused(server: Served):
    reply = send_raw(server, head("Content-Length: 1000"), *[b" "] * 4, pause=0.1)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in reply


def test_garbage_behind_a_request_costs_only_its_own_connection(server: Served):
    good = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reply = send_raw(server, good, b"\x00\xffrubbish\r\n\r\n" + good, pause=0.05)
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in reply
    assert ask(server, "/health").status == 200


def test_a_websocket_is_refused(server: Served):
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    request = "\r\n".join(["GET /v1/models HTTP/1.1", "Host: localhost", *upgrade, "", ""]).encode()
    assert send_raw(server, request).split()[1] in (b"401", b"403")


def test_a_client_that_offers_http_2_is_answered_by_http_1(server: Served):
    body = json.dumps(chat()).encode()
    offer = head(
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
        f"Content-Length: {len(body)}",
    )
    answer = send_raw(server, offer + body)
    assert answer.startswith(b"HTTP/1.1 200") and b'"choices"' in answer


def test_headers_without_end_are_refused(server: Served):
    try:
        answer = send_raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 2_000_000)
    except ConnectionError:  # closed while they were being sent
        answer = b"HTTP/1.1 400"
    assert answer.startswith(b"HTTP/1.1 400")
    assert ask(server, "/health").status == 200
