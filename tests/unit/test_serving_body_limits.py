"""What is refused before a body is looked at, and that the rest is handed on whole."""

import asyncio
from collections.abc import Sequence

import pytest
from starlette.types import Message, Receive, Scope, Send

from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.body_limits import BodyLimits, ClientGone
from tokensqueeze.serving.settings import LimitSettings

LIMITS = LimitSettings(max_body_bytes=10, body_timeout_seconds=0.05)
JSON = (b"content-type", b"application/json")


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def handed_on(
    messages: Sequence[Message], *headers: tuple[bytes, bytes], method: str = "POST", pause: float = 0
) -> list[Message]:
    """Return the first two messages that the app behind the limits receives."""
    received: list[Message] = []
    waiting = list(messages)

    async def receive() -> Message:
        await asyncio.sleep(pause)
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.extend([await receive(), await receive()])

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent here")

    asyncio.run(BodyLimits(app, LIMITS)({"type": "http", "method": method, "headers": headers}, receive, send))
    return received


def refusal(messages: Sequence[Message], *headers: tuple[bytes, bytes], pause: float = 0) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as refused:
        handed_on(messages, *headers, pause=pause)
    return refused.value.status, refused.value.code


def test_a_body_is_handed_on_in_one_piece_and_behind_it_the_news_that_the_client_is_gone():
    parts = [part(b"12345", more=True), part(b"", more=True), part(b"67890")]
    assert handed_on(parts, JSON) == [part(b"1234567890"), {"type": "http.disconnect"}]


def test_a_body_of_the_limits_length_is_let_through_and_one_byte_more_is_not():
    assert handed_on([part(b"x" * 10)], JSON, (b"content-length", b"10"))[0] == part(b"x" * 10)
    assert refusal([part(b"x" * 11)], JSON) == (413, "body_too_long")


def test_a_length_over_the_limit_is_refused_before_anything_is_read():
    for length in (b"11", b"9" * 5000):
        assert refusal([], JSON, (b"content-length", length)) == (413, "body_too_long")


def test_parts_that_sum_up_over_the_limit_are_refused_at_the_one_that_does():
    endless = [part(b"xxxx", more=True)] * 1000
    assert refusal(endless, JSON) == (413, "body_too_long")


@pytest.mark.parametrize("length", [b"-1", b"ten", b"", b"1e1", b"\xb2", b"5, 5"])
def test_a_length_that_is_no_number_is_refused(length: bytes):
    assert refusal([part(b"")], JSON, (b"content-length", length)) == (400, "invalid_header")


def test_a_body_that_takes_too_long_is_refused():
    assert refusal([part(b"x", more=True)] * 9, JSON, pause=0.02) == (408, "body_timeout")


@pytest.mark.parametrize(
    "kind",
    [
        b"",
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/json; charset=utf-16",
        b"application/jsonp",
        b"application/json, text/plain",
        b"application/json; charset*" + b"9" * 5000 + b"*=a",
        b"\xff\x00",
    ],
)
def test_what_is_not_said_to_be_json_in_utf8_is_refused(kind: bytes):
    assert refusal([part(b"{}")], (b"content-type", kind)) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", [b"application/json", b"Application/JSON; charset=UTF-8", b'application/json;charset="utf-8"'])
def test_json_may_be_named_with_its_charset(kind: bytes):
    assert handed_on([part(b"{}")], (b"content-type", kind))[0] == part(b"{}")


def test_a_compressed_body_is_refused_as_it_could_grow_over_the_limit():
    assert refusal([part(b"x")], JSON, (b"content-encoding", b"gzip")) == (415, "unsupported_media_type")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_the_bodys():
    with pytest.raises(ClientGone):
        handed_on([part(b"x", more=True), {"type": "http.disconnect"}], JSON)


def test_requests_without_a_body_are_not_looked_at():
    assert handed_on([part(b"")], method="GET")[0] == part(b"")
