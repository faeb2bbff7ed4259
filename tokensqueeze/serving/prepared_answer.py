"""The tokens of a request's choices become its answer: in chunks, or whole."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from tokensqueeze.serving.answer_shapes import AnswerShape, GatheredChoice
from tokensqueeze.serving.choice_stream import Choice, Update, merged
from tokensqueeze.serving.request_record import RequestRecord
from tokensqueeze.serving.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    CompletionTokensDetails,
    Usage,
)


class PreparedAnswer:
    """A request that nothing is wrong with; to be generated once, whole or in chunks."""

    def __init__(
        self, streams: Sequence[Choice], shape: AnswerShape, record: RequestRecord, *, usage: bool, continuous_usage: bool
    ):
        self.choices = len(streams)
        self._streams, self._shape, self._record = streams, shape, record
        self._usage, self._continuous_usage = usage, usage and continuous_usage

    async def whole(self, on_first_token: Callable[[], None]) -> ChatCompletion | Completion:
        """Generate the answer. Raises `EngineError`; cancelling it closes every choice's stream."""
        gathered = [GatheredChoice() for _ in self._streams]
        async with aclosing(self._updates(on_first_token)) as updates:
            async for update in updates:
                choice = gathered[update.index]
                choice.reasoning.append(update.new.reasoning)
                choice.answer.append(update.new.answer)
                if (logprobs := self._shape.logprobs(update)) is not None:
                    choice.logprobs.append(logprobs)
                if update.finish_reason is not None:
                    choice.finish_reason, choice.thinking_closed = update.finish_reason, update.thinking_closed
        return self._shape.whole(gathered, _usage(self._record))

    async def chunks(self, on_first_token: Callable[[], None]) -> AsyncGenerator[ChatCompletionChunk | CompletionChunk, None]:
        """Generate the answer piece by piece. Raises `EngineError`; closing it closes every choice's stream."""
        async with aclosing(self._updates(on_first_token)) as updates:
            async for update in updates:
                if update.first and (opening := self._shape.opening(update.index)) is not None:
                    yield opening
                chunk = self._shape.chunk(update, _usage(self._record) if self._continuous_usage else None)
                if chunk is not None:
                    yield chunk
        if self._usage:
            yield self._shape.usage_chunk(_usage(self._record))

    def _updates(self, on_first_token: Callable[[], None]) -> AsyncGenerator[Update, None]:
        return merged([stream.updates(on_first_token) for stream in self._streams])


def _usage(record: RequestRecord) -> Usage:
    reasoning, answer = record.reasoning_tokens, record.answer_tokens
    return Usage.model_construct(
        prompt_tokens=record.prompt_tokens,
        completion_tokens=reasoning + answer,
        total_tokens=record.prompt_tokens + reasoning + answer,
        completion_tokens_details=CompletionTokensDetails.model_construct(reasoning_tokens=reasoning, answer_tokens=answer),
    )
