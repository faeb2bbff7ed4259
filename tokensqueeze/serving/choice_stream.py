"""The completions of one request while they are generated: each read as text, and all merged into one stream as they come."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from tokensqueeze.errors import EngineError
from tokensqueeze.schema import FinishReason
from tokensqueeze.serving.completion_text import CompletionText, NewText
from tokensqueeze.serving.generation import Piece, ServedRequest, TokenLogprob, TokenSource
from tokensqueeze.serving.request_record import RequestRecord


@dataclass(frozen=True, slots=True)
class Update:
    """What one piece added to one choice."""

    index: int
    """The choice's."""
    first: bool
    new: NewText
    token_ids: tuple[int, ...]
    """Those that count: up to a stop text, it included."""
    logprobs: tuple[TokenLogprob, ...] | None
    """One per token, if they were asked for."""
    finish_reason: FinishReason | None
    """Set in the choice's last update, and in no other."""
    thinking_closed: bool
    """Whether, in this update or before, the thinking was closed at its budget."""


class Choice:
    """One completion; what is measured of it goes into the request's record."""

    def __init__(
        self,
        index: int,
        request: ServedRequest,
        source: TokenSource,
        text: CompletionText,
        record: RequestRecord,
        *,
        log_answer: bool = False,
    ):
        self._index, self._request, self._source, self._text, self._record = index, request, source, text, record
        self._answer: list[str] | None = [] if log_answer else None
        self._num_tokens = 0
        self._thinking_closed = False
        self._last_piece: float | None = None

    async def updates(self, on_first_token: Callable[[], None]) -> AsyncGenerator[Update, None]:
        """Yield an update per piece; where a stop text ends the completion, its place in the engine is free before the last.

        Raises `EngineError` where the engine does, or ends without saying why.
        """
        last: Update | None = None
        async with aclosing(self._source.stream(self._request)) as pieces:
            async for piece in pieces:
                if last is not None:
                    break
                if self._last_piece is None:
                    on_first_token()
                update = self._read(piece)
                last = update if update.finish_reason else None
                if self._text.stopped:
                    break
                yield update
        if last is None:
            raise EngineError(f"request {self._request.request_id}: its tokens ended without a finish_reason")
        if self._text.stopped:
            yield last

    def _read(self, piece: Piece) -> Update:
        first = self._last_piece is None
        self._time(len(piece.token_ids))
        new = self._text.add(piece.token_ids)
        finish_reason = "stop" if self._text.stopped else piece.finish_reason
        if finish_reason is not None:
            rest = self._text.end()
            new = NewText(new.reasoning + rest.reasoning, new.answer + rest.answer, new.num_reasoning, new.num_answer)
            # What was held back may have been the end of a stop text.
            finish_reason = "stop" if self._text.stopped else finish_reason
        counted = new.num_reasoning + new.num_answer
        self._num_tokens += counted
        self._thinking_closed |= piece.thinking_closed
        self._record.resumed += piece.resumed
        self._record_text(new, finish_reason)
        return Update(
            self._index,
            first,
            new,
            piece.token_ids[:counted],
            None if piece.logprobs is None else piece.logprobs[:counted],
            finish_reason,
            self._thinking_closed,
        )

    def _time(self, num_tokens: int) -> None:
        now, record = time.monotonic(), self._record
        if record.first_token_seconds is None:
            record.first_token_seconds = now - record.arrived
        if self._last_piece is not None and num_tokens:
            record.inter_token_seconds.append(((now - self._last_piece) / num_tokens, num_tokens))
        self._last_piece = now

    def _record_text(self, new: NewText, finish_reason: FinishReason | None) -> None:
        record = self._record
        record.reasoning_tokens += new.num_reasoning
        record.answer_tokens += new.num_answer
        if self._answer is not None:
            self._answer.append(new.answer)
        if finish_reason is not None:
            record.finish_reasons.append(finish_reason)
            record.completion_lengths.append(self._num_tokens)
            record.thinking_closed += self._thinking_closed
            if self._answer is not None:
                before = "" if record.answer is None else f"{record.answer}\n\n"
                record.answer = before + "".join(self._answer)


async def merged(streams: Sequence[AsyncGenerator[Update, None]]) -> AsyncGenerator[Update, None]:
    """Yield what the streams yield, as it comes. The first error closes all of them, and is raised."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for update in only:
                yield update
        return
    # A client that reads slowly holds the streams up, not the memory.
    arrived: asyncio.Queue[Update | BaseException | None] = asyncio.Queue(maxsize=len(streams))

    async def pump(stream: AsyncGenerator[Update, None]) -> None:
        try:
            async with aclosing(stream) as updates:
                async for update in updates:
                    await arrived.put(update)
        except Exception as error:
            await arrived.put(error)
        else:
            await arrived.put(None)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            update = await arrived.get()
            if isinstance(update, BaseException):
                raise update
            if update is None:
                running -= 1
            else:
                yield update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
