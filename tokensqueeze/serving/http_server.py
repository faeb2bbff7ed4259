"""The HTTP server of `tokensqueeze serve`: uvicorn, which tells when it listens, and is drained when told to stop."""

import contextlib
import math
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI

_IDLE_CONNECTION_SECONDS = 5
_BACKLOG = 2048
_CONNECTIONS = 2048
"""More get a 503: each takes a descriptor."""
_HEADER_BYTES = 65_536


def server_config(app: "FastAPI", *, port: int = 0, drain_seconds: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        # httptools would lose the body of a client that offers an upgrade to HTTP/2, as Java's does, and bounds no header.
        http="h11",
        h11_max_incomplete_event_size=_HEADER_BYTES,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_CONNECTION_SECONDS,
        timeout_graceful_shutdown=math.ceil(drain_seconds),
        backlog=_BACKLOG,
        lifespan="off",
    )


class Server(uvicorn.Server):
    """Tells when it listens, and what it waits for when it is told to stop."""

    def __init__(self, app: "FastAPI", *, drain_seconds: float, announce: Callable[[], None], say: Callable[[str], None]):
        super().__init__(server_config(app, drain_seconds=drain_seconds))
        self._app, self._announce, self._say = app, announce, say

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was heeded is not raised again: stopping when told to is no failure."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            under_way = self._app.state.in_flight()
            self._app.state.drain()
            cut = "; Ctrl-C again cuts them off"
            self._say(f"stopping, with requests under way: {under_way}{cut}" if under_way else "stopping")
        super().handle_exit(sig, frame)
