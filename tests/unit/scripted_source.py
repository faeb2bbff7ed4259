"""A TokenSource that plays what a test wrote down: pieces, pauses, errors; and remembers what was asked and what was closed."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.schema import FinishReason
from tokensqueeze.serving.generation import Piece, ServedRequest, TokenLogprob

Step = Piece | float | asyncio.Event | Exception
"""Yielded; slept, in seconds; waited for; raised."""
Script = Sequence[Step] | Callable[[ServedRequest], Iterable[Step]]
"""Steps, or what makes them for a request; they may go on for ever."""


class ScriptedSource:
    """The i-th stream plays the i-th script, and begins again with the first behind the last.

    As in an engine, a completion is cut at the request's `max_tokens`, and one piece travels per turn of the event loop.
    """

    def __init__(self, *scripts: Script, running: int = 1):
        self._scripts = scripts
        self.engines = running
        self.requests: list[ServedRequest] = []
        """Every request that was streamed, in order."""
        self.closed: list[str] = []
        """Ids of the requests whose stream was closed before its last piece."""
        self.open: set[str] = set()
        """Ids of the requests under way: what has a place in the engine."""

    async def running(self) -> int:
        return self.engines

    async def stream(self, request: ServedRequest) -> AsyncGenerator[Piece, None]:
        script = self._scripts[len(self.requests) % len(self._scripts)]
        self.requests.append(request)
        self.open.add(request.request_id)
        try:
            for step in _cut(script(request) if callable(script) else script, request.max_tokens):
                match step:
                    case Piece():
                        await asyncio.sleep(0)
                        yield step
                    case asyncio.Event():
                        await step.wait()
                    case Exception():
                        raise step
                    case _:
                        await asyncio.sleep(step)
        except (GeneratorExit, asyncio.CancelledError):
            self.closed.append(request.request_id)
            raise
        finally:
            self.open.discard(request.request_id)


def pieces(
    token_ids: Sequence[int],
    *,
    size: int = 1,
    finish_reason: FinishReason = "stop",
    logprobs: Sequence[TokenLogprob] | None = None,
    pause: float | None = None,
) -> list[Step]:
    """Return a script that sends the tokens `size` at a time, `pause` seconds before each piece."""
    steps: list[Step] = []
    for start in range(0, len(token_ids), size):
        part = slice(start, start + size)
        last = part.stop >= len(token_ids)
        if pause is not None:
            steps.append(pause)
        own = None if logprobs is None else tuple(logprobs[part])
        steps.append(Piece(tuple(token_ids[part]), own, finish_reason if last else None))
    return steps


def demo_tokens(text: str) -> list[int]:
    """Return a text's tokens in the demo model's vocabulary; `<|im_end|>` is its end-of-sequence token."""
    return load_tokenizer(demo_model_dir())(text, add_special_tokens=False).input_ids


def says(text: str = "Let me add.\n</think>\n\nThe answer is 5.", *, size: int = 1, pause: float | None = None) -> list[Step]:
    """Return a script in which the demo model says this and ends; its prompt has opened the thinking block."""
    return pieces(demo_tokens(text + "<|im_end|>"), size=size, pause=pause)


def _cut(steps: Iterable[Step], max_tokens: int) -> Iterator[Step]:
    """Cut a script at `max_tokens` tokens."""
    sent = 0
    for step in steps:
        if isinstance(step, Piece):
            room = max_tokens - sent
            sent += len(step.token_ids)
            if sent > max_tokens or (sent == max_tokens and step.finish_reason is None):
                own = None if step.logprobs is None else step.logprobs[:room]
                yield replace(step, token_ids=step.token_ids[:room], logprobs=own, finish_reason="length")
                return
        yield step
