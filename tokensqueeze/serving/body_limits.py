"""Reads a request's body before anything looks at it: not too long, not too slow, and said to be JSON."""

import asyncio
import re

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.settings import LimitSettings

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_JSON_IN_UTF8 = re.compile(r'\s*application/json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?;?\s*', re.IGNORECASE)


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


class BodyLimits:
    """ASGI middleware: hands on the whole body at once, or raises `ApiError` (400, 408, 413, 415) or `ClientGone`."""

    def __init__(self, app: ASGIApp, limits: LimitSettings):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        self._check_length(headers.get(b"content-length"))
        _check_type(headers.get(b"content-type", b""), headers.get(b"content-encoding", b""))
        body = await self._read(receive)
        handed_on = False

        async def replay() -> AsgiMessage:
            nonlocal handed_on
            if handed_on:
                return await receive()  # what is left to come is the news that the client is gone
            handed_on = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_length(self, value: bytes | None) -> None:
        if value is None:
            return
        if not value.isdigit():
            raise ApiError(400, f"Content-Length: {value.decode('latin-1')!r} is no number of bytes.", code="invalid_header")
        # Of what is digits and too long to be a sensible number, the length alone says enough.
        if len(value) > 18 or int(value) > self._limits.max_body_bytes:
            raise self._too_long()

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        seconds = self._limits.body_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.max_body_bytes:
                        raise self._too_long()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            message = f"The request's body had not come whole after {seconds:g} s ({size} bytes had). Send it faster."
            raise ApiError(408, message, code="body_timeout") from None

    def _too_long(self) -> ApiError:
        message = f"The request's body is longer than {self._limits.max_body_bytes} bytes. Send a shorter one."
        return ApiError(413, message, code="body_too_long")


def _check_type(content_type: bytes, content_encoding: bytes) -> None:
    if not _JSON_IN_UTF8.fullmatch(content_type.decode("latin-1")):
        shown = content_type[:100].decode("latin-1")
        raise ApiError(415, f"Content-Type: {shown!r}; send application/json, in UTF-8.", code="unsupported_media_type")
    if content_encoding.lower() not in (b"", b"identity"):
        shown = content_encoding[:100].decode("latin-1")
        raise ApiError(415, f"Content-Encoding: {shown!r}; send the body as it is.", code="unsupported_media_type")
