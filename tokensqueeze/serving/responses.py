"""What clients are sent by /v1/chat/completions, /v1/completions and /v1/models: OpenAI's objects, and fields for thinking.

They are made without validation: this server is the only one that fills them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tokensqueeze.schema import FinishReason


class _Returned(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class CompletionTokensDetails(_Returned):
    reasoning_tokens: int
    """The tag that closes the thinking included."""
    answer_tokens: int


class Usage(_Returned):
    """Tokens of the model's own tokenizer, of all choices."""

    prompt_tokens: int
    completion_tokens: int
    """Reasoning and answer, the tokens of a forced close and of the end included."""
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(_Returned):
    token: str
    """Its text; `\\xf0\\x9f` for bytes that are no whole characters."""
    logprob: float
    """Natural logarithm, at temperature 1; −9999 and below is −9999."""
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Returned):
    """One entry per token that the usage counts, apart for reasoning and answer."""

    content: list[ChatTokenLogprob]
    reasoning_content: list[ChatTokenLogprob]


class AnswerMessage(_Returned):
    role: Literal["assistant"] = "assistant"
    content: str
    """The answer; empty if the thinking was never closed."""
    reasoning_content: str | None = None
    """The thinking without its tags; absent for models that don't think."""


class ChatChoice(_Returned):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason
    thinking_closed_at_budget: bool = False


class ChatCompletion(_Returned):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class AnswerDelta(_Returned):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChatChunkChoice(_Returned):
    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    """In a choice's last chunk."""
    thinking_closed_at_budget: bool | None = None
    """In a choice's last chunk."""


class ChatCompletionChunk(_Returned):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    """Empty in the chunk that brings the usage."""
    usage: Usage | None = None


class CompletionLogprobs(_Returned):
    """One entry per token that the usage counts."""

    tokens: list[str]
    """Their texts; `bytes:\\xf0\\x9f` for bytes that are no whole characters."""
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    """The most probable tokens, and the one that was drawn."""
    text_offset: list[int]
    """Characters of the completion before each."""


class CompletionChoice(_Returned):
    index: int
    """Of prompt p (from 0), `n * p` up to `n * p + n - 1`."""
    text: str
    """As the model wrote it, the tags of thinking included."""
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    """In a choice's last chunk, and in a whole answer."""
    thinking_closed_at_budget: bool | None = None
    """In a choice's last chunk, and in a whole answer."""


class Completion(_Returned):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(_Returned):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    """Empty in the chunk that brings the usage."""
    usage: Usage | None = None


class ModelFacts(_Returned):
    role: Literal["base", "squeezed"] | None
    """Its part in the comparison at `/`."""
    context_length: int
    """Tokens, prompt and completion together."""
    reasoning: bool
    base_length: float | None
    """Mean tokens of a completion before squeezing, as the model card has it."""
    squeezed_length: float | None


class ModelEntry(_Returned):
    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time of the model's files."""
    owned_by: str = "tokensqueeze"
    tokensqueeze: ModelFacts


class ModelList(_Returned):
    object: Literal["list"] = "list"
    data: list[ModelEntry] = Field(min_length=1)
