"""The transformers engine as a deployment of Ray Serve: one model, one batch that requests join and leave."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from tokensqueeze.config import EngineSettings
from tokensqueeze.serving.engine_thread import EngineThread
from tokensqueeze.serving.generation import Piece, ServedRequest


@dataclass(frozen=True)
class EngineLoad:
    slots: int
    active: int
    """Requests in a slot."""
    waiting: int
    """Requests whose prompts have not been read."""


class EngineReplica:
    """To be wrapped by `serve.deployment`; `HandleSource` asks it."""

    def __init__(self, folder: Path, engine: EngineSettings, dtype: str):
        # Loads torch, which the processes that only deploy this class do without.
        from tokensqueeze.engines.build import build_batch

        self._batch = build_batch(folder, engine, dtype)
        self._thread = EngineThread(self._batch)

    async def stream(self, request: ServedRequest) -> AsyncGenerator[Piece, None]:
        """Yield the completion in pieces; closing the generator frees its slot before the next step."""
        async with aclosing(self._thread.pieces(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def load(self) -> EngineLoad:
        return EngineLoad(self._batch.slots, self._batch.active, self._batch.waiting)

    def check_health(self) -> None:
        """Raise if the engine failed, so that Serve replaces this replica."""
        if self._thread.failure:
            raise self._thread.failure
