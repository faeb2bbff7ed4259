"""What every engine does: turn prompts into completions, each row with a seed of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokensqueeze.schema import FinishReason


@dataclass(frozen=True)
class GenerationRequest:
    prompt_token_ids: Sequence[int]
    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    stop_texts: tuple[str, ...] = ()
    """The completion ends with the token that completes one of these, or at an end-of-sequence token."""


@dataclass(frozen=True)
class Generation:
    token_ids: list[int]
    """What was generated, the token that ended it included."""
    finish_reason: FinishReason


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
class TokenLogprob:
    """Natural logarithms of probabilities at temperature 1, over the whole vocabulary."""

    logprob: float
    """The token's own."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with theirs, most probable first."""


def distinct_prompts(requests: Sequence[GenerationRequest]) -> dict[int, Sequence[int]]:
    """Return each prompt once, by its `id`: what draws behind one prompt share is converted once, and never copied."""
    return {id(request.prompt_token_ids): request.prompt_token_ids for request in requests}


class Engine(Protocol):
    """A model that generates.

    `deterministic` engines give a request the same tokens whichever worker, batch order or restart it meets, provided the
    same requests come in one call; an engine that batches by arrival can't promise that.
    """

    deterministic: bool

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Return one generation per request, in the requests' order.

        Raises `EngineError` for a prompt with no room left in the model's context.
        """
        ...
