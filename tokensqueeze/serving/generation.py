"""What passes between the ingress and an engine, whichever engine it is: prompts as tokens in, tokens in pieces out."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from tokensqueeze.engines.base import ThinkingLimit, TokenLogprob
from tokensqueeze.errors import EngineError
from tokensqueeze.schema import FinishReason


class EngineStopped(EngineError):
    """The engine that was asked has failed before; another may serve the request."""


@dataclass(frozen=True)
class ServedRequest:
    """One completion to generate."""

    request_id: str
    """Unique among the requests under way."""
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    """Tokens of the completion at most, reasoning, a forced close and `generated_token_ids` included."""
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    """Below 2**63. The same request with the same seed gives the same tokens wherever the engine can promise that."""
    top_logprobs: int | None = None
    """Alternatives to report with each token's logprob; 0: the token's own alone; none: no logprobs."""
    thinking: ThinkingLimit | None = None
    interval_seconds: float = 0.05
    """Tokens that come faster than this travel in one piece; the first token is never kept back, nor the end."""
    generated_token_ids: tuple[int, ...] = ()
    """The beginning of the completion, where another replica died behind it: it is gone on with, not sent again."""


@dataclass(frozen=True)
class Piece:
    """The next tokens of one completion."""

    token_ids: tuple[int, ...]
    """Never those of `generated_token_ids`; the token that ended the completion included."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One per token, if the request asked for them."""
    finish_reason: FinishReason | None = None
    """Set in the last piece, and in no other."""
    thinking_closed: bool = False
    """Whether, in this piece, the thinking was closed at its budget."""
    resumed: int = 0
    """How often the completion was taken up by another replica since the piece before."""


class TokenSource(Protocol):
    """The engines behind one model's name."""

    def stream(self, request: ServedRequest) -> AsyncGenerator[Piece, None]:
        """Yield the completion in pieces. Closing the generator frees the request's place in the engine.

        Raises `EngineError` where no engine could finish it.
        """
        ...

    async def running(self) -> int:
        """Return how many engines can take requests; 0 while the model is loading."""
        ...
