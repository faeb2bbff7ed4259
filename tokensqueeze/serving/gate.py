"""The gate before the app: an id for each request, known routes only, keys before bodies, errors in one shape, one record."""

import asyncio
import secrets
from collections.abc import Sequence

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokensqueeze.serving.access_log import AccessLog
from tokensqueeze.serving.admission import Traffic
from tokensqueeze.serving.api_errors import ApiError, told_to_client
from tokensqueeze.serving.auth import KeyRing
from tokensqueeze.serving.body_limits import ClientGone
from tokensqueeze.serving.metrics import DRAINING, NONE, ServingMetrics
from tokensqueeze.serving.request_record import RequestRecord

_CLIENT_GONE = 499
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 16 * 2**20


class Gate:
    """ASGI middleware. It answers whatever is raised behind it, before anything was sent, and counts and logs each request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[BaseRoute],
        open_routes: frozenset[str],
        keys: KeyRing,
        traffic: Traffic,
        metrics: ServingMetrics,
        access_log: AccessLog,
        retry_after: int,
    ):
        """`open_routes`: paths that need no key."""
        self._app, self._routes, self._open_routes, self._keys = app, routes, open_routes, keys
        self._traffic, self._metrics, self._access_log, self._retry_after = traffic, metrics, access_log, retry_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(f"req-{secrets.token_hex(12)}", NONE, method=scope["method"])
        scope.setdefault("state", {})["record"] = record
        exchange = _Exchange(record, _has_body(scope), receive, send, self._traffic)
        self._count(1)
        try:
            self._admit(scope, record)
            await self._app(scope, exchange.receive, exchange.send)
        except ClientGone:
            record.status = _CLIENT_GONE
        except asyncio.CancelledError:
            record.status = _CLIENT_GONE
            raise
        except Exception as error:
            told = told_to_client(error, record.request_id, retry_after=self._retry_after)
            record.error = told.code
            await exchange.refuse(told)
        finally:
            record.duration_seconds = record.elapsed()
            self._count(-1)
            self._metrics.observe(record)
            self._access_log.write(record)

    def _admit(self, scope: Scope, record: RequestRecord) -> None:
        """Raises `ApiError` for an unknown route (404, 405), while the server stops (503) and without a key (401, 403)."""
        record.route = self._route(scope)
        if record.route in self._open_routes:
            return
        if self._traffic.draining and scope["method"] == "POST":
            message = "The server is stopping. Ask another, or again when it is back."
            raise ApiError(503, message, code=DRAINING, retry_after=self._retry_after)
        holder = self._keys.holder(scope["headers"])
        record.key = holder.name
        scope["state"]["holder"] = holder

    def _route(self, scope: Scope) -> str:
        """Return the template of the route that a request is for."""
        allowed: set[str] = set()
        for route in self._routes:
            match, _ = route.matches(scope)
            if isinstance(route, Route) and match is Match.FULL:
                return route.path_format
            if isinstance(route, Route) and match is Match.PARTIAL:
                allowed |= route.methods or set()
        if allowed:
            names = ", ".join(sorted(allowed))
            message = f"This path does not take {scope['method'][:20]}; use {names}."
            raise ApiError(405, message, code="method_not_allowed", allow=names)
        message = "There is no such path here. The API is at /v1/chat/completions, /v1/completions and /v1/models."
        raise ApiError(404, message, code="unknown_url")

    def _count(self, requests: int) -> None:
        self._traffic.in_flight += requests
        self._metrics.observe_in_flight(self._traffic.in_flight)


class _Exchange:
    """One request and its response, as they pass through the gate."""

    def __init__(self, record: RequestRecord, has_body: bool, receive: Receive, send: Send, traffic: Traffic):
        self._record, self._receive, self._send, self._traffic = record, receive, send, traffic
        self._body_read = not has_body
        self._started = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._body_read = self._body_read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self._record.status = message["status"]
            headers = [*message.get("headers", ()), *_HEADERS, (b"x-request-id", self._record.request_id.encode())]
            if self._traffic.draining or not self._body_read:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        if self._started:
            return
        body = error.json()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": not self._body_read})
        if not self._body_read:
            await self._linger()
            await self.send({"type": "http.response.body", "body": b""})

    async def _linger(self) -> None:
        """Take what the client is still sending: closed at once, the connection would be reset and the answer lost."""
        taken = 0
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._body_read and taken < _LINGER_BYTES:
                    taken += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")) for name, value in scope["headers"]
    )
