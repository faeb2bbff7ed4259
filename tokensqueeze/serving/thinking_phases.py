"""Thinking limits on an engine that only completes: asked up to the budget first, then for what follows the closed thinking.

The engine reads nothing twice where it keeps a prefix cache. A completion that stays inside its budget takes one phase.
"""

import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import accumulate
from typing import Protocol

from tokensqueeze.engines.base import ThinkingLimit, TokenLogprob
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.generation import Piece, ServedRequest
from tokensqueeze.traces.token_texts import TokenTexts


class CompletingEngine(Protocol):
    def complete(
        self, request: ServedRequest, prompt_token_ids: list[int], max_tokens: int, seed: int
    ) -> AsyncGenerator[Piece, None]:
        """Yield what follows a prompt, by the request's temperature, top_p and logprobs; the last piece has a finish_reason."""
        ...

    async def logprobs_of_last(self, request: ServedRequest, token_ids: list[int], count: int) -> tuple[TokenLogprob, ...]:
        """Return the logprobs of a text's last tokens, each behind those before it."""
        ...


async def complete_in_phases(
    engine: CompletingEngine, request: ServedRequest, texts: TokenTexts, context_length: int
) -> AsyncGenerator[Piece, None]:
    """Yield a request's completion with its thinking limit; what `generated_token_ids` holds is gone on with."""
    prompt, tokens = list(request.prompt_token_ids), list(request.generated_token_ids)
    longest = min(request.max_tokens, context_length - len(prompt))
    limit = request.thinking
    if limit is not None and limit.think_end not in "".join(texts.each(tokens)):
        # As many tokens more as the tag has show whether thinking ends by itself just at the budget.
        last_look = limit.budget + len(texts.encode(limit.think_end))
        ended = False
        held = Piece(())
        if len(tokens) < min(last_look, longest):
            most = min(last_look, longest) - len(tokens)
            async with aclosing(engine.complete(request, prompt + tokens, most, _seed(request, tokens))) as pieces:
                async for piece in pieces:
                    now, later = _split(piece, max(0, limit.budget - len(tokens)))
                    tokens += piece.token_ids
                    held = joined(held, later)
                    ended = piece.finish_reason == "stop"
                    if now.token_ids:
                        yield now
        if _thought(texts.each(tokens), limit) > limit.budget:
            closed = await _closed(engine, request, prompt + tokens[: limit.budget], longest - limit.budget, limit)
            tokens = [*tokens[: limit.budget], *closed.token_ids]
            if len(tokens) >= longest:
                yield replace(closed, finish_reason="length")
                return
            yield closed
        else:
            finish_reason = "stop" if ended else "length" if len(tokens) >= longest else None
            if held.token_ids or finish_reason:
                yield replace(held, finish_reason=finish_reason)
            if finish_reason:
                return
    if len(tokens) >= longest:
        yield Piece((), () if request.top_logprobs is not None else None, "length")
        return
    async with aclosing(engine.complete(request, prompt + tokens, longest - len(tokens), _seed(request, tokens))) as pieces:
        async for piece in pieces:
            yield piece


async def travelling_together(pieces: AsyncGenerator[Piece, None], interval_seconds: float) -> AsyncGenerator[Piece, None]:
    """Yield pieces joined where they come faster than the interval; the first and the last are never kept back.

    Raises `EngineError` where they stop without a finish_reason.
    """
    waiting, sent_at = Piece(()), -interval_seconds
    async with aclosing(pieces):
        async for piece in pieces:
            waiting = joined(waiting, piece)
            now = time.monotonic()
            if waiting.finish_reason or (waiting.token_ids and now - sent_at >= interval_seconds):
                yield waiting
                if waiting.finish_reason:
                    return
                waiting, sent_at = Piece(()), now
    raise EngineError("the engine stopped in the middle of a completion; ask again")


def joined(first: Piece, second: Piece) -> Piece:
    return Piece(
        first.token_ids + second.token_ids,
        second.logprobs if first.logprobs is None else first.logprobs + (second.logprobs or ()),
        second.finish_reason,
        first.thinking_closed or second.thinking_closed,
    )


def _split(piece: Piece, count: int) -> tuple[Piece, Piece]:
    """Return a piece's first tokens and the others, neither with a finish_reason."""
    logprobs = piece.logprobs
    first = Piece(piece.token_ids[:count], logprobs if logprobs is None else logprobs[:count])
    return first, Piece(piece.token_ids[count:], logprobs if logprobs is None else logprobs[count:])


async def _closed(
    engine: CompletingEngine, request: ServedRequest, thinking: list[int], room: int, limit: ThinkingLimit
) -> Piece:
    """Return the tokens that close thinking, as many as there is room for."""
    closing = limit.close_token_ids[: max(0, room)]
    logprobs = None
    if request.top_logprobs is not None:
        logprobs = await engine.logprobs_of_last(request, [*thinking, *closing], len(closing))
    return Piece(closing, logprobs, thinking_closed=True)


def _thought(token_texts: Sequence[str], limit: ThinkingLimit) -> int:
    """Return how many tokens stand before the first tag that ends thinking; without one, all."""
    position = "".join(token_texts).find(limit.think_end)
    return len(token_texts) if position < 0 else sum(end <= position for end in accumulate(map(len, token_texts)))


def _seed(request: ServedRequest, tokens: list[int]) -> int:
    """Return the seed of the phase behind some tokens: the same numbers drawn again there would repeat the first's luck."""
    if not tokens:
        return request.seed
    digest = hashlib.sha256(f"{request.seed} {len(tokens)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
