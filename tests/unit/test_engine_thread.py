"""The thread that steps the engine, without Ray: how pieces travel, what a failure does, that waiting costs nothing."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.engines.build import build_batch, build_engine
from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.engine_replica import EngineReplica
from tokensqueeze.serving.engine_thread import EngineThread
from tokensqueeze.serving.generation import EngineStopped, Piece, ServedRequest

SETTINGS = EngineSettings(max_batch_size=2)
PROMPT = (1, 367, 203, 376, 311)


@pytest.fixture
def thread() -> Iterator[EngineThread]:
    thread = EngineThread(build_batch(demo_model_dir(), SETTINGS, "auto"))
    yield thread
    thread.stop()


def request(seed: int, *, interval: float, max_tokens: int = 40, top_logprobs: int | None = None) -> ServedRequest:
    return ServedRequest(str(seed), PROMPT, max_tokens, 2.5, 1.0, seed, top_logprobs, interval_seconds=interval)


async def pieces_of(thread: EngineThread, asked: ServedRequest) -> list[Piece]:
    return [piece async for piece in thread.pieces(asked)]


def expected(seed: int) -> list[int]:
    asked = GenerationRequest(PROMPT, 40, 2.5, 1.0, seed)
    return build_engine(demo_model_dir(), SETTINGS, "auto").generate([asked])[0].token_ids


def test_without_an_interval_every_token_travels_alone_and_with_a_long_one_all_behind_the_first(thread: EngineThread) -> None:
    async def both() -> tuple[list[Piece], list[Piece]]:
        return await asyncio.gather(
            pieces_of(thread, request(3, interval=0)), pieces_of(thread, request(3, interval=1e6, top_logprobs=2))
        )

    alone, together = asyncio.run(both())
    tokens = expected(3)
    assert [piece.token_ids for piece in alone] == [(token,) for token in tokens]
    assert [piece.token_ids for piece in together] == [(tokens[0],), tuple(tokens[1:])]
    assert [len(piece.logprobs or ()) for piece in together] == [1, len(tokens) - 1]
    for pieces in (alone, together):
        assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]


def test_a_failure_of_the_engine_ends_every_request_and_is_bad_health() -> None:
    replica = EngineReplica(demo_model_dir(), SETTINGS, "auto")
    steps = 0

    def fail(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > 6:
            raise ValueError("no such number")

    replica._batch.model.register_forward_hook(fail)

    async def ask(seed: int) -> list[Piece]:
        return [piece async for piece in replica.stream(request(seed, interval=0))]

    async def three() -> list[Any]:
        # One of them waits for a slot.
        return await asyncio.gather(*(ask(seed) for seed in range(3)), return_exceptions=True)

    replica.check_health()
    for error in asyncio.run(three()):
        assert isinstance(error, EngineError)
        assert "ValueError: no such number" in str(error)
    with pytest.raises(EngineStopped, match="Serve replaces its replica"):
        asyncio.run(ask(4))
    with pytest.raises(EngineStopped):
        replica.check_health()
    replica._thread.stop()


def test_a_request_without_room_fails_alone(thread: EngineThread) -> None:
    async def both() -> Any:
        long = ServedRequest("long", PROMPT * 300, 5, 0.0, 1.0, 0)
        return await asyncio.gather(
            pieces_of(thread, long), pieces_of(thread, request(3, interval=1e6)), return_exceptions=True
        )

    refused, answered = asyncio.run(both())
    assert isinstance(refused, EngineError)
    assert "1500 tokens of prompt" in str(refused)
    assert [token for piece in answered for token in piece.token_ids] == expected(3)


def test_an_idle_engine_takes_no_time(thread: EngineThread) -> None:
    asyncio.run(pieces_of(thread, request(3, interval=0)))
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
