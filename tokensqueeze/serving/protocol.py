"""What clients may send to /v1/chat/completions and /v1/completions: OpenAI's fields, and two for thinking.

A field of OpenAI's that changes nothing in the text is accepted and ignored. One that would change it, and is not supported,
takes only the value that changes nothing; any other is refused, rather than answered as if it had been heeded.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

_MOST = 2**31 - 1


def _or_else(kind: str, message: str) -> WrapValidator:
    """Say this where the value does not fit, instead of listing how it fails each alternative."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError(kind, message) from None  # type: ignore[arg-type]

    return WrapValidator(validate)


def _unsupported(what: str, way_out: str = "leave it out") -> WrapValidator:
    return _or_else("unsupported", f"{what} not supported by this server; {way_out}")


def _whole_characters(text: str) -> str:
    # Half of a surrogate pair, which JSON can escape, has no UTF-8, and so no tokens.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("string_unicode", "must be whole characters; it has half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


class _Sent(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class TextPart(_Sent):
    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: Any = None
    """Ignored."""


Content = Annotated[
    Text | Annotated[list[TextPart], Field(fail_fast=True)],
    _or_else("content", 'must be text, or a list of {"type": "text", "text": …}; images, audio and files are not supported'),
]
_NoCalls = Annotated[list[Any] | None, Field(max_length=0), _unsupported("tool calls are", "send their results as text")]


class Message(_Sent):
    role: Annotated[
        Literal["system", "developer", "user", "assistant"],
        _or_else("role", "must be system, developer, user or assistant; messages of tools and functions are not supported"),
    ]
    """`developer` is put to the model as `system`."""
    content: Content
    """Parts are joined by line breaks."""
    name: Text | None = None
    reasoning_content: Text | None = None
    """What an earlier answer's reasoning was; most chat templates leave it out."""
    tool_calls: _NoCalls = None
    function_call: Annotated[None, _unsupported("function calls are")] = None
    audio: Annotated[None, _unsupported("audio is")] = None
    refusal: str | None = None
    """Ignored."""
    annotations: Any = None
    """Ignored."""


class StreamOptions(_Sent):
    include_usage: bool | None = None
    """Send the usage behind the last chunk."""
    continuous_usage_stats: bool | None = None
    """With `include_usage`: send the usage so far in every chunk."""
    include_obfuscation: bool | None = None
    """Ignored."""


class TextFormat(_Sent):
    type: Literal["text"]


StopText = Annotated[Text, Field(min_length=1, max_length=256)]
Effort = Literal["low", "medium", "high"]


class SamplingRequest(_Sent):
    """What both routes have in common."""

    model: str
    """One of the names that `GET /v1/models` lists."""
    n: int | None = Field(default=None, ge=1, le=128)
    """Completions per prompt; default: 1. The server's `limits.max_choices` may be lower."""
    max_tokens: int | None = Field(default=None, ge=1, le=_MOST)
    """The most tokens of a completion, reasoning included; more than the model's context has room for is that room."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 is greedy; default: the model's generation_config.json, else 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Default: the model's generation_config.json, else 1."""
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    """The first completion is drawn with it, each further one with a seed that follows from it and the completion's index;
    default: a random one."""
    stop: Annotated[
        StopText | Annotated[list[StopText], Field(fail_fast=True)] | None,
        _or_else("stop", "must be a text of 1 to 256 characters, or a list of such texts"),
    ] = None
    """Texts that end a completion, and are no part of it. In a chat they are looked for in the answer, not the reasoning."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    """With `stream` only."""
    thinking_budget: int | None = Field(default=None, ge=0, le=_MOST)
    """Tokens of thinking behind which the thinking is closed, and the model answers."""
    reasoning_effort: Annotated[
        Effort | None, _or_else("reasoning_effort", "must be low, medium or high; thinking_budget takes any number of tokens")
    ] = None
    """A thinking budget by name, as the server's settings have it."""

    frequency_penalty: Annotated[float | None, Field(ge=0, le=0), _unsupported("penalties are", "leave it out, or set 0")] = (
        None
    )
    presence_penalty: Annotated[float | None, Field(ge=0, le=0), _unsupported("penalties are", "leave it out, or set 0")] = None
    logit_bias: Annotated[dict[str, Any] | None, Field(max_length=0), _unsupported("biases are")] = None
    user: Any = None
    """Ignored."""


class ChatCompletionRequest(SamplingRequest):
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_MOST)
    """The newer name of `max_tokens`, which it overrides; default: what the model's context has room for."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """With `logprobs` only."""

    tools: Annotated[list[Any] | None, Field(max_length=0), _unsupported("tools are")] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, _unsupported("tools are", 'leave it out, or set "none"')] = None
    functions: Annotated[list[Any] | None, Field(max_length=0), _unsupported("functions are")] = None
    function_call: Annotated[Literal["none", "auto"] | None, _unsupported("functions are", 'leave it out, or set "none"')] = (
        None
    )
    response_format: Annotated[
        TextFormat | None,
        _unsupported("other formats are", 'set {"type": "text"}, and ask for the form in a message'),
    ] = None
    modalities: Annotated[
        Annotated[list[Literal["text"]], Field(fail_fast=True)] | None,
        _unsupported("others than text are", 'leave it out, or set ["text"]'),
    ] = None
    audio: Annotated[None, _unsupported("audio is")] = None
    prediction: Annotated[None, _unsupported("predicted outputs are")] = None
    moderation: Annotated[None, _unsupported("moderation is")] = None
    web_search_options: Annotated[None, _unsupported("web search is")] = None
    verbosity: Annotated[Literal["medium"] | None, _unsupported("others than medium are", "ask for it in a message")] = None

    metadata: Any = None
    """Ignored, like all that follow."""
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None


TokenId = Annotated[int, Field(ge=0, le=_MOST)]


class CompletionRequest(SamplingRequest):
    prompt: Annotated[
        Text
        | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
        | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]], Field(min_length=1, fail_fast=True)],
        _or_else("prompt", "must be a text, a list of texts, a list of token ids, or a list of lists of token ids, none empty"),
    ]
    """Put to the model as it is, without a chat template; token ids without anything added."""
    logprobs: int | None = Field(default=None, ge=0, le=5)
    """Alternatives to report with each token's logprob."""
    best_of: int | None = Field(default=None, ge=1, le=128)
    """Accepted where it equals `n`."""

    echo: Annotated[Literal[False] | None, _unsupported("echo is", "leave it out, and put the prompt before the text")] = None
    suffix: Annotated[Literal[""] | None, _unsupported("suffixes are")] = None
