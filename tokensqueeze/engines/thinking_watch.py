"""A thinking budget while the model thinks: the completion is cut where `traces.thinking_budget.cut_at_budget` would cut it.

That cut needs the whole completion, since a tag that is spelled out in several tokens may begin at the budget's last token and
end behind it. So tokens behind the budget are held back for as long as they may still turn out to be the tag.
"""

from collections.abc import Mapping
from typing import Literal

from tokensqueeze.engines.base import ThinkingLimit

Thought = Literal["inside", "held", "ended", "over"]
"""What a token means: it lies inside the budget; it is behind it, and may belong to the tag; it completed the tag in time; the
completion must be cut at the budget."""


class ThinkingWatch:
    """Sees one completion's tokens, in order, until the thinking has ended or is over its budget."""

    def __init__(self, limit: ThinkingLimit, texts: Mapping[int, str]):
        self.limit, self._texts = limit, texts
        self._tokens = 0
        self._text = ""
        """The end of the text, in which the tag may have begun."""
        self._latest_start = 0
        """Where in `_text` the tag must begin before, to leave no more than the budget in front of it."""

    def see(self, token: int) -> Thought:
        tag = self.limit.think_end
        self._tokens += 1
        text = self._text + self._texts[token]
        if self._tokens <= self.limit.budget:
            self._text = text[len(text) - len(tag) + 1 :] if len(text) >= len(tag) else text
            return "ended" if tag in text else "inside"
        self._text = text
        if self._tokens == self.limit.budget + 1:
            self._latest_start = len(text)
        start = text.find(tag)
        if start >= 0:
            return "ended" if start < self._latest_start else "over"
        return "held" if self._may_have_begun() else "over"

    def _may_have_begun(self) -> bool:
        starts = range(max(0, len(self._text) - len(self.limit.think_end) + 1), self._latest_start)
        return any(self.limit.think_end.startswith(self._text[start:]) for start in starts)
