"""One thread that steps a batch, and the asyncio side that puts requests in and takes pieces out.

The thread hands over once per step at most, so that the interpreter that both share is left to the model.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokensqueeze.engines.base import GenerationRequest, TokenLogprob
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.generation import EngineStopped, Piece, ServedRequest

if TYPE_CHECKING:
    from tokensqueeze.engines.continuous_batch import ContinuousBatch
    from tokensqueeze.engines.served_row import Growth

_log = logging.getLogger(__name__)


class EngineThread:
    """Runs until `stop`, or until the engine fails: then every request under way ends with an `EngineError`."""

    def __init__(self, batch: "ContinuousBatch"):
        self._batch = batch
        self._keys = map(str, itertools.count())
        self._orders: deque[Callable[[], None]] = deque()
        """What the thread is to do before its next step; it alone touches the batch and `_streams`."""
        self._streams: dict[str, _Stream] = {}
        self._wake = threading.Event()
        self._is_stopping = False
        self.failure: EngineStopped | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def pieces(self, request: ServedRequest) -> AsyncGenerator[Piece, None]:
        """Yield a completion. Closing the generator frees its slot before the next step."""
        if self.failure:
            raise self.failure
        stream = _Stream(next(self._keys), request, asyncio.get_running_loop())
        self._order(lambda: self._add(stream))
        try:
            while True:
                for arrived in await stream.arrivals():
                    if isinstance(arrived, EngineError):
                        raise arrived
                    yield arrived
                    if arrived.finish_reason:
                        return
        finally:
            self._order(lambda: self._forget(stream))

    def stop(self) -> None:
        self._is_stopping = True
        self._wake.set()
        self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        self._wake.set()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                if not self._batch.active and not self._batch.waiting:
                    self._wake.wait()
                self._wake.clear()
                self._obey()
                self._hand_over(self._batch.step())
        except Exception as error:  # whatever it is, the batch can't be trusted any more
            _log.exception("the engine failed")
            self.failure = EngineStopped(f"the engine failed ({type(error).__name__}); Serve replaces its replica")
            failed = EngineError(f"the engine failed on a step ({type(error).__name__}: {error}); ask again")
            for stream in self._streams.values():
                _deliver([(stream, failed)])
            self._refuse_the_rest()

    def _obey(self) -> None:
        while self._orders:
            self._orders.popleft()()

    def _refuse_the_rest(self) -> None:
        """Answer those who came between the failure and its announcement, and those who leave."""
        while not self._is_stopping:
            self._obey()
            self._wake.wait()
            self._wake.clear()

    def _add(self, stream: "_Stream") -> None:
        request = stream.request
        if self.failure:
            _deliver([(stream, self.failure)])
            return
        try:
            self._batch.add(
                stream.key,
                GenerationRequest(
                    request.prompt_token_ids, request.max_tokens, request.temperature, request.top_p, request.seed
                ),
                generated_token_ids=request.generated_token_ids,
                thinking=request.thinking,
                top_logprobs=request.top_logprobs,
            )
        except EngineError as error:
            _deliver([(stream, error)])
        else:
            self._streams[stream.key] = stream

    def _forget(self, stream: "_Stream") -> None:
        if self._streams.pop(stream.key, None) and not self.failure:
            self._batch.cancel(stream.key)

    def _hand_over(self, growths: "list[Growth]") -> None:
        now = time.monotonic()
        due: list[tuple[_Stream, Piece | EngineError]] = []
        for growth in growths:
            stream = self._streams[growth.key]
            if piece := stream.grow(growth, now):
                due.append((stream, piece))
                if growth.finish_reason:
                    del self._streams[growth.key]
        if due:
            _deliver(due)


@dataclass(eq=False)
class _Stream:
    """One request: what has come since its last piece, kept by the thread, and what has arrived at its loop."""

    key: str
    request: ServedRequest
    loop: asyncio.AbstractEventLoop
    _token_ids: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    _thinking_closed: bool = False
    _due: float = 0.0
    """When the next piece is to go, by the monotonic clock."""
    _arrived: list[Piece | EngineError] = field(default_factory=list)
    _arrival: asyncio.Event = field(default_factory=asyncio.Event)

    def grow(self, growth: "Growth", now: float) -> Piece | None:
        """Take in what one step brought, and return a piece if one is due."""
        self._token_ids += growth.token_ids
        self._thinking_closed |= growth.thinking_closed
        if growth.logprobs is not None:
            self._logprobs += growth.logprobs
        if now < self._due and not growth.finish_reason:
            return None
        piece = Piece(
            tuple(self._token_ids),
            None if self.request.top_logprobs is None else tuple(self._logprobs),
            growth.finish_reason,
            self._thinking_closed,
        )
        self._token_ids, self._logprobs, self._thinking_closed = [], [], False
        interval = self.request.interval_seconds
        # The same moments for all streams, so that the loop is woken once for many pieces.
        self._due = (now // interval + 1) * interval if interval else now
        return piece

    def arrive(self, arrived: Piece | EngineError) -> None:
        self._arrived.append(arrived)
        self._arrival.set()

    async def arrivals(self) -> list[Piece | EngineError]:
        await self._arrival.wait()
        self._arrival.clear()
        arrived, self._arrived = self._arrived, []
        return arrived


def _deliver(due: list[tuple[_Stream, Piece | EngineError]]) -> None:
    # All streams of a replica live on one loop; where it is closed, nobody listens any more.
    with contextlib.suppress(RuntimeError):
        due[0][0].loop.call_soon_threadsafe(_arrive, due)


def _arrive(due: list[tuple[_Stream, Piece | EngineError]]) -> None:
    for stream, arrived in due:
        stream.arrive(arrived)
