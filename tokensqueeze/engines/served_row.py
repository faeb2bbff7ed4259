"""One completion of a continuous batch: its random numbers, its thinking budget, and what of it can be handed out."""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tokensqueeze.engines.base import GenerationRequest, ThinkingLimit, TokenLogprob
from tokensqueeze.engines.thinking_watch import ThinkingWatch
from tokensqueeze.schema import FinishReason

_UNIFORMS = 256
"""Random numbers made at once; a multiple of the four that one count of the generator gives."""


class Growth(NamedTuple):
    """What one request has got."""

    key: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    """One per token, for a request that asked for them."""
    finish_reason: FinishReason | None
    thinking_closed: bool
    """Whether these tokens close the thinking at its budget."""


@dataclass(eq=False)
class ServedRow:
    key: str
    request: GenerationRequest
    max_tokens: int
    """Of the whole completion, as far as the context has room for it."""
    eos_token_ids: frozenset[int]
    token_ids: list[int]
    """The completion so far; at first, what was generated elsewhere."""
    watch: ThinkingWatch | None
    """As long as the thinking may still be cut."""
    top_logprobs: int | None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the tokens that have not been handed out."""
    closing: deque[int] = field(default_factory=deque)
    """What must still be put there to close the thinking."""
    taken_back: int = 0
    """Tokens behind the budget that must leave the cache."""
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.prefix = (*self.request.prompt_token_ids, *self.token_ids)[:-1]
        """What is read before the row starts; the last token is read by its first step."""
        self._handed = len(self.token_ids)
        self._is_closing = False
        self._block, self._uniforms = -1, [0.0]
        for token in self.token_ids:
            # What stands behind the budget was handed out, so it was settled there how the thinking ends.
            if self.watch and self.watch.see(token) != "inside":
                self.watch = None

    @property
    def last_token(self) -> int:
        return (self.token_ids or self.request.prompt_token_ids)[-1]

    def next_uniform(self) -> float:
        """Return the random number of the next token's place: the same one whenever, and wherever, it is drawn for."""
        block, place = divmod(len(self.token_ids), _UNIFORMS)
        if block != self._block:
            source = np.random.Philox(key=self.request.seed).advance(block * _UNIFORMS // 4)
            self._uniforms, self._block = np.random.Generator(source).random(_UNIFORMS).tolist(), block
        return self._uniforms[place]

    def take(self, token: int) -> Growth | None:
        """Add a token, and return what can be handed out with it."""
        self.token_ids.append(token)
        if token in self.eos_token_ids and not self._is_closing:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
        if self.watch:
            thought = self.watch.see(token)
            if thought == "over" or (thought == "held" and self.finish_reason):
                self._cut(self.watch.limit)
            elif thought == "ended":
                self.watch = None
            if thought in ("over", "held"):
                return None
        # The tokens that close the thinking go out together, so that a completion never breaks off between them.
        if self.closing and not self.finish_reason:
            return None
        growth = Growth(
            self.key,
            self.token_ids[self._handed :],
            self._take_logprobs(),
            self.finish_reason,
            thinking_closed=self._is_closing,
        )
        self._handed, self._is_closing = len(self.token_ids), False
        return growth

    def _cut(self, limit: ThinkingLimit) -> None:
        """Take back what is behind the budget; the next steps put the close there, whatever the model would write."""
        self.taken_back = len(self.token_ids) - limit.budget
        del self.token_ids[limit.budget :]
        del self.logprobs[len(self.logprobs) - self.taken_back :]
        self.finish_reason = self.watch = None
        self.closing, self._is_closing = deque(limit.close_token_ids), True

    def _take_logprobs(self) -> list[TokenLogprob] | None:
        if self.top_logprobs is None:
            return None
        taken, self.logprobs = self.logprobs, []
        return taken
