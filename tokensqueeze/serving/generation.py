"""What passes between the ingress and an engine, whichever engine it is: prompts as tokens in, tokens in pieces out."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from tokensqueeze.schema import FinishReason


@dataclass(frozen=True)
class ThinkingLimit:
    """Where thinking is closed: as `traces.thinking_budget.cut_at_budget` cuts, but while the model is thinking."""

    budget: int
    """Tokens of thinking that stay; the tag that ends thinking does not count."""
    think_end: str
    """Text of that tag; once it has been generated, the limit is met."""
    close_token_ids: tuple[int, ...]
    """What is put behind the budget's last token; behind it the model goes on by itself."""


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
class TokenLogprob:
    """Natural logarithms of probabilities at temperature 1, over the whole vocabulary."""

    logprob: float
    """The token's own."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with theirs, most probable first."""


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
