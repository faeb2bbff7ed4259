"""Sends an answer, whole or as a stream of events, and stops the engine where nobody waits for it any more."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokensqueeze.errors import EngineError
from tokensqueeze.serving.admission import Admission, Admitted, Traffic
from tokensqueeze.serving.api_errors import ApiError, told_to_client
from tokensqueeze.serving.auth import KeyHolder
from tokensqueeze.serving.body_limits import ClientGone
from tokensqueeze.serving.prepared_answer import PreparedAnswer
from tokensqueeze.serving.request_record import RequestRecord
from tokensqueeze.serving.settings import LimitSettings

_JSON = [(b"content-type", b"application/json")]
# The last header keeps proxies such as nginx from gathering the events.
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
_DONE = b"data: [DONE]\n\n"
_LAST_WORD_SECONDS = 1.0
"""How long a client that does not read is waited for, to tell it of an error."""


class Delivery(Response):
    """The response to a prepared request: the places are taken when it is sent, and given back when it ends.

    Raises `ApiError`, `ClientGone` or what the engine raised as long as nothing has been sent; later errors become an event.
    """

    def __init__(
        self,
        prepared: PreparedAnswer,
        record: RequestRecord,
        *,
        admission: Admission,
        holder: KeyHolder,
        traffic: Traffic,
        limits: LimitSettings,
    ):
        super().__init__()
        self._prepared, self._record = prepared, record
        self._admission, self._holder, self._traffic, self._limits = admission, holder, traffic, limits
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission.admit(self._holder, self._prepared.choices) as admitted:
            work = self._stream(admitted, send) if self._record.stream else self._whole(admitted, send)
            try:
                await until_gone(work, receive, self._limits.request_timeout_seconds - self._record.elapsed())
            except ClientGone:
                raise
            except asyncio.CancelledError:
                # Whoever stops the server cancels what has not ended by then, and its client still hears so. Else it was
                # the client who left.
                if not self._traffic.draining:
                    raise
                await self._fail(ApiError(503, "The server is stopping.", code="stopping", retry_after=self._retry_after), send)
            except TimeoutError:
                await self._fail(self._too_late(), send)
            except Exception as error:
                await self._fail(told_to_client(error, self._record.request_id, retry_after=self._retry_after), send)

    async def _whole(self, admitted: Admitted, send: Send) -> None:
        answer = _json(await self._prepared.whole(admitted.first_token))
        length = [(b"content-length", b"%d" % len(answer))]
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": _JSON + length})
        await send({"type": "http.response.body", "body": answer})

    async def _stream(self, admitted: Admitted, send: Send) -> None:
        # What comes before the first token is held back: until then an engine's error still has a status of its own.
        held: list[bytes] = []
        async with contextlib.aclosing(self._prepared.chunks(admitted.first_token)) as chunks:
            async for chunk in chunks:
                event = b"data: %b\n\n" % _json(chunk)
                if self._started:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                    continue
                held.append(event)
                if admitted.waiting < admitted.choices:
                    await self._start(held, send)
        if not self._started:
            await self._start(held, send)
        await send({"type": "http.response.body", "body": _DONE})

    async def _start(self, held: list[bytes], send: Send) -> None:
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        await send({"type": "http.response.body", "body": b"".join(held), "more_body": True})

    async def _fail(self, error: ApiError, send: Send) -> None:
        """Tell the client in the stream where it has begun, or else by raising the error, which has a status then."""
        if not self._started:
            raise error
        self._record.error = error.code
        event = b"data: %b\n\n" % error.json() if self._record.stream else b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await send({"type": "http.response.body", "body": event})

    def _too_late(self) -> ApiError:
        seconds = self._limits.request_timeout_seconds
        message = f"The answer had not ended after {seconds:g} s. Ask for fewer tokens with max_tokens."
        return ApiError(504, message, code="request_timeout")

    @property
    def _retry_after(self) -> int:
        return self._limits.retry_after_seconds


async def until_gone(work: Coroutine[Any, Any, None], receive: Receive, seconds: float) -> None:
    """Wait for `work`. Raises `ClientGone` if the client leaves first, `TimeoutError` after `seconds`: work has ended then."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    both = (working, watching)
    try:
        done, _ = await asyncio.wait(both, timeout=max(0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        # Looked at, or asyncio would report errors that nobody waits for any more.
        failures = [None if task.cancelled() else task.exception() for task in both]
    if working in done:
        if working.cancelled():
            raise EngineError("an engine cancelled the request")
        if failures[0] is not None:
            raise failures[0]
    elif watching in done:
        raise ClientGone
    else:
        raise TimeoutError


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(answer: BaseModel) -> bytes:
    return answer.model_dump_json(exclude_none=True).encode()
