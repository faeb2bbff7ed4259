"""The same updates in the shape of a chat completion or of a text completion, in chunks or whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokensqueeze.schema import FinishReason
from tokensqueeze.serving.choice_stream import Update
from tokensqueeze.serving.responses import (
    AnswerDelta,
    AnswerMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Usage,
)
from tokensqueeze.serving.token_bytes import TokenBytes
from tokensqueeze.serving.token_logprobs import TextLogprobs, chat_logprobs


@dataclass
class GatheredChoice:
    """The updates of one choice, put together for a whole answer."""

    reasoning: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    thinking_closed: bool = False


class AnswerShape(Protocol):
    def opening(self, index: int) -> ChatCompletionChunk | CompletionChunk | None:
        """Return the chunk that goes before a choice's first text, if there is one."""
        ...

    def chunk(self, update: Update, usage: Usage | None) -> ChatCompletionChunk | CompletionChunk | None:
        """Return an update's chunk; none where there is nothing to tell yet."""
        ...

    def usage_chunk(self, usage: Usage) -> ChatCompletionChunk | CompletionChunk: ...

    def logprobs(self, update: Update) -> ChatLogprobs | CompletionLogprobs | None:
        """Word an update's logprobs; to be asked once for each update, in order."""
        ...

    def whole(self, choices: Sequence[GatheredChoice], usage: Usage) -> ChatCompletion | Completion: ...


class ChatShape:
    """Chunks are made without validation: they are many."""

    def __init__(self, answer_id: str, created: int, model: str, token_bytes: TokenBytes, *, reasoning: bool):
        self._head = {"id": answer_id, "created": created, "model": model}
        self._token_bytes, self._reasoning = token_bytes, reasoning

    def opening(self, index: int) -> ChatCompletionChunk:
        delta = AnswerDelta.model_construct(role="assistant", content="")
        return self._chunk([ChatChunkChoice.model_construct(index=index, delta=delta)], None)

    def chunk(self, update: Update, usage: Usage | None) -> ChatCompletionChunk | None:
        new, logprobs = update.new, self.logprobs(update)
        if not (new.reasoning or new.answer or logprobs or update.finish_reason):
            return None
        delta = AnswerDelta.model_construct(content=new.answer or None, reasoning_content=new.reasoning or None)
        choice = ChatChunkChoice.model_construct(
            index=update.index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=update.finish_reason,
            thinking_closed_at_budget=update.thinking_closed if update.finish_reason else None,
        )
        return self._chunk([choice], usage)

    def usage_chunk(self, usage: Usage) -> ChatCompletionChunk:
        return self._chunk([], usage)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None) -> ChatCompletionChunk:
        return ChatCompletionChunk.model_construct(**self._head, choices=choices, usage=usage)

    def logprobs(self, update: Update) -> ChatLogprobs | None:
        if update.logprobs is None:
            return None
        entries = chat_logprobs(self._token_bytes.own, update.token_ids, update.logprobs)
        border = update.new.num_reasoning
        return ChatLogprobs.model_construct(content=entries[border:], reasoning_content=entries[:border])

    def whole(self, choices: Sequence[GatheredChoice], usage: Usage) -> ChatCompletion:
        return ChatCompletion.model_construct(
            **self._head, choices=[self._choice(index, choice) for index, choice in enumerate(choices)], usage=usage
        )

    def _choice(self, index: int, gathered: GatheredChoice) -> ChatChoice:
        reasoning = "".join(gathered.reasoning) if self._reasoning else None
        logprobs = ChatLogprobs.model_construct(
            content=[entry for part in gathered.logprobs for entry in part.content],
            reasoning_content=[entry for part in gathered.logprobs for entry in part.reasoning_content],
        )
        return ChatChoice.model_construct(
            index=index,
            message=AnswerMessage.model_construct(content="".join(gathered.answer), reasoning_content=reasoning),
            logprobs=logprobs if gathered.logprobs else None,
            finish_reason=gathered.finish_reason,
            thinking_closed_at_budget=gathered.thinking_closed,
        )


class TextShape:
    def __init__(self, answer_id: str, created: int, model: str, token_bytes: TokenBytes, *, choices: int):
        self._head = {"id": answer_id, "created": created, "model": model}
        self._logprobs = [TextLogprobs(token_bytes.own, token_bytes.shown) for _ in range(choices)]

    def opening(self, index: int) -> None:
        return None

    def chunk(self, update: Update, usage: Usage | None) -> CompletionChunk | None:
        logprobs = self.logprobs(update)
        if not (update.new.answer or logprobs or update.finish_reason):
            return None
        choice = CompletionChoice.model_construct(
            index=update.index,
            text=update.new.answer,
            logprobs=logprobs,
            finish_reason=update.finish_reason,
            thinking_closed_at_budget=update.thinking_closed if update.finish_reason else None,
        )
        return CompletionChunk.model_construct(**self._head, choices=[choice], usage=usage)

    def usage_chunk(self, usage: Usage) -> CompletionChunk:
        return CompletionChunk.model_construct(**self._head, choices=[], usage=usage)

    def logprobs(self, update: Update) -> CompletionLogprobs | None:
        return None if update.logprobs is None else self._logprobs[update.index].add(update.token_ids, update.logprobs)

    def whole(self, choices: Sequence[GatheredChoice], usage: Usage) -> Completion:
        made = [
            CompletionChoice.model_construct(
                index=index,
                text="".join(choice.answer),
                logprobs=_joined(choice.logprobs) if choice.logprobs else None,
                finish_reason=choice.finish_reason,
                thinking_closed_at_budget=choice.thinking_closed,
            )
            for index, choice in enumerate(choices)
        ]
        return Completion.model_construct(**self._head, choices=made, usage=usage)


def _joined(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    return CompletionLogprobs.model_construct(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[logprob for part in parts for logprob in part.token_logprobs],
        top_logprobs=[top for part in parts for top in part.top_logprobs],
        text_offset=[offset for part in parts for offset in part.text_offset],
    )
