"""A completion's tokens read as text while they arrive: reasoning apart from the answer, up to the first stop text.

Tokens are read one by one, so what comes out depends on the completion alone, not on the pieces it travels in; and each is
read once, so the time is linear.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadingRules:
    """How the completions of one request are read."""

    think_end: str | None
    """The tag that ends thinking; none: nothing of the completion is thinking."""
    think_start: str | None = None
    """The tag that is dropped where the model opens the thinking itself."""
    apart: bool = True
    """Return the reasoning apart from the answer, without tags and blank lines around it; else all as it stands, as answer."""
    stop_texts: tuple[str, ...] = ()
    """They end the answer, or, where nothing is kept apart, the completion."""


@dataclass(frozen=True, slots=True)
class NewText:
    """What some tokens added."""

    reasoning: str
    answer: str
    num_reasoning: int
    """Tokens of them up to the closing tag, it included."""
    num_answer: int
    """Tokens behind it. Tokens behind a stop text are not counted."""


class CompletionText:
    """Reads one completion.

    Thinking ends with the first `think_end`; without one, all is thinking, as `traces.anatomy.thinking_tokens` counts.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], rules: ReadingRules):
        self._bytes_of, self._rules = bytes_of, rules
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._thinking = rules.think_end is not None
        self._opening: str | None = "" if self._thinking and rules.apart else None
        """What may be the beginning of the opening tag; none once it is known whether there is one."""
        self._tail = ""
        """The end of the thinking so far, which may be the beginning of the closing tag."""
        self._reasoning = _Stripped()
        self._blank_lines: _BlankLines | None = None
        """Set behind the closing tag."""
        self._stop = _StopTexts(rules.stop_texts)

    @property
    def stopped(self) -> bool:
        """Whether a stop text has ended the completion."""
        return self._stop.met

    def add(self, token_ids: Sequence[int]) -> NewText:
        """Read the next tokens, up to the one that completes a stop text."""
        reasoning: list[str] = []
        answer: list[str] = []
        num_reasoning = num_answer = 0
        for token in token_ids:
            if self._stop.met:
                break
            if self._thinking:
                num_reasoning += 1
            else:
                num_answer += 1
            text = self._decode(self._bytes_of(token))
            if text:
                self._read(text, reasoning, answer)
        return NewText("".join(reasoning), "".join(answer), num_reasoning, num_answer)

    def end(self) -> NewText:
        """Return what was held back, at the end of the completion."""
        reasoning: list[str] = []
        answer: list[str] = []
        if not self._stop.met:
            # A character that was cut off shows as a replacement character.
            self._read(self._decode(b"", True), reasoning, answer)
            if self._thinking and self._rules.apart:
                reasoning.append(self._reasoning.add((self._opening or "") + self._tail))
            answer.append(self._stop.held())
        return NewText("".join(reasoning), "".join(answer), 0, 0)

    def _read(self, text: str, reasoning: list[str], answer: list[str]) -> None:
        if not self._rules.apart:
            if self._thinking:
                self._think(text)
            answer.append(self._stop.add(text))
            return
        if self._opening is not None:
            text = self._without_opening(text)
        if self._thinking and text:
            thought, text = self._think(text)
            reasoning.append(self._reasoning.add(thought))
        if not self._thinking:
            visible = self._blank_lines.add(text) if self._blank_lines else text
            answer.append(self._stop.add(visible))

    def _without_opening(self, text: str) -> str:
        """Return what is known to be no opening tag, nor blank space before one."""
        begun, tag = ((self._opening or "") + text).lstrip(), self._rules.think_start or ""
        if len(begun) < len(tag) and tag.startswith(begun):
            self._opening = begun
            return ""
        self._opening = None
        return begun.removeprefix(tag)

    def _think(self, text: str) -> tuple[str, str]:
        """Return what is known to be thought, and, once the thinking has ended, what follows the closing tag."""
        tag = self._rules.think_end or ""
        text = self._tail + text
        position = text.find(tag)
        if position >= 0:
            self._thinking, self._blank_lines, self._tail = False, _BlankLines(), ""
            return text[:position], text[position + len(tag) :]
        known = len(text) - _overlap(text, tag)
        self._tail = text[known:]
        return text[:known], ""


class _Stripped:
    """Leaves out the blank space at both ends."""

    def __init__(self) -> None:
        self._blank: list[str] | None = None
        """Blank space that is left out if nothing follows it; none at the beginning, where all of it is."""

    def add(self, text: str) -> str:
        visible = text.rstrip()
        if not visible:
            if self._blank is not None:
                self._blank.append(text)
            return ""
        before = "" if self._blank is None else "".join(self._blank)
        added = before + visible if self._blank is not None else visible.lstrip()
        self._blank = [text[len(visible) :]]
        return added


class _BlankLines:
    """Leaves out blank lines at the beginning, and spaces before the first of them; a first line keeps its indentation."""

    def __init__(self) -> None:
        self._indentation: list[str] = []
        self._on_tag_line = True
        self._over = False

    def add(self, text: str) -> str:
        if self._over:
            return text
        visible = text.lstrip()
        _, line_break, indentation = text[: len(text) - len(visible)].rpartition("\n")
        if line_break:
            self._indentation, self._on_tag_line = [], False
        self._indentation.append(indentation)
        if not visible:
            return ""
        self._over = True
        return visible if self._on_tag_line else "".join(self._indentation) + visible


class _StopTexts:
    """Lets text pass up to the stop text that is complete first; of several that end there, the longest."""

    def __init__(self, stop_texts: Sequence[str]):
        self._stop_texts = stop_texts
        self._tail = ""
        self.met = False

    def add(self, text: str) -> str:
        if not self._stop_texts or not text:
            return text
        text = self._tail + text
        found = [(at + len(stop), at) for stop in self._stop_texts if (at := text.find(stop)) >= 0]
        if found:
            self.met, self._tail = True, ""
            return text[: min(found)[1]]
        known = len(text) - max(_overlap(text, stop) for stop in self._stop_texts)
        self._tail = text[known:]
        return text[:known]

    def held(self) -> str:
        return "" if self.met else self._tail


def _overlap(text: str, target: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the target, but not all of it."""
    start = max(0, len(text) - len(target) + 1)
    while (start := text.find(target[0], start)) >= 0:
        if target.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
