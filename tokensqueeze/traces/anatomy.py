"""Where a completion's thinking ends and which of its tokens are which step.

A step is a run of text between blank lines, kept as a span of the trace's own tokens. What stands between two spans (the
blank line, the closing tag) stays as it is, so replacing no span gives back the same tokens: splitting and joining are
exact inverses.

Real tokenizers merge a blank line into its neighbours. A token that ends a step and the blank line (".\\n\\n") belongs to
the step, and in a trace with such tokens every step has the blank line behind it along ("5" "\\n\\n"), so that its rewriting
may end in either way. A token that holds a blank line and what follows ("\\n\\nThe") stays, and its step begins behind it.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

STEP_DELIMITER = "\n\n"
_SEPARATOR = re.compile(r"\n\n\s*")


@dataclass(frozen=True)
class Span:
    """Tokens `start` up to, not including, `end`."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def thinking_tokens(token_texts: Sequence[str], think_end: str) -> int:
    """Return how many tokens the thinking block takes, its closing tag included; all of them if it is never closed."""
    position = "".join(token_texts).rfind(think_end)
    return len(token_texts) if position < 0 else _first_boundary(token_texts, position + len(think_end))


def step_spans(token_texts: Sequence[str], think_end: str) -> list[Span]:
    """Return the spans of the thinking block's steps, in order.

    `token_texts` is each token decoded by itself. A completion that never closes its thinking block has its answer in its
    last paragraph; that paragraph is no step, so that no rewriting can touch the answer. Steps that have a token in common
    are one step; one that has a token in common with the closing tag or the answer is none, for it can't be replaced alone.
    """
    text = "".join(token_texts)
    closing = text.rfind(think_end)
    limit = closing if closing >= 0 else max((paragraph.start for paragraph in _paragraphs(text)), default=0)
    boundaries = [0, *accumulate(map(len, token_texts))]
    takes_blank_line = any(_merges_blank_line(token_text) for token_text in token_texts)
    spans: list[Span] = []
    for paragraph in _paragraphs(text[:limit]):
        start, end = bisect_right(boundaries, paragraph.start) - 1, bisect_left(boundaries, paragraph.stop)
        if spans and start < spans[-1].end:
            start = spans.pop().start
        elif boundaries[start] < paragraph.floor:
            start += 1
        if start >= end or boundaries[end] > limit:
            continue
        behind = bisect_left(boundaries, paragraph.ceiling)
        if takes_blank_line and boundaries[behind] == paragraph.ceiling:
            end = max(end, behind)
        spans.append(Span(start, end))
    return spans


def replace_spans(token_ids: Sequence[int], replacements: Mapping[Span, Sequence[int]]) -> list[int]:
    """Return the tokens with some spans replaced; the spans must not overlap."""
    joined: list[int] = []
    position = 0
    for span in sorted(replacements, key=lambda span: span.start):
        joined += [*token_ids[position : span.start], *replacements[span]]
        position = span.end
    return [*joined, *token_ids[position:]]


@dataclass(frozen=True)
class _Paragraph:
    """Positions in the text: what is visible goes from `start` to `stop`."""

    floor: int
    """The end of the blank line before it, or the text's beginning."""
    start: int
    stop: int
    ceiling: int
    """The end of the blank line behind it, or the text's end."""


def _paragraphs(text: str) -> list[_Paragraph]:
    """Return the paragraphs, blank ones left out."""
    blank_lines = [match.span() for match in _SEPARATOR.finditer(text)]
    starts = [0, *(end for _, end in blank_lines)]
    stops = [*(start for start, _ in blank_lines), len(text)]
    floors = [0, *(start + len(STEP_DELIMITER) for start, _ in blank_lines)]
    ceilings = [*floors[1:], len(text)]
    found = []
    for floor, start, stop, ceiling in zip(floors, starts, stops, ceilings, strict=True):
        content = text[start:stop]
        start += len(content) - len(content.lstrip())
        stop = start + len(content.strip())
        if stop > start:
            found.append(_Paragraph(floor, start, stop, ceiling))
    return found


def _merges_blank_line(token_text: str) -> bool:
    before, delimiter, _ = token_text.partition(STEP_DELIMITER)
    return bool(delimiter and before.strip())


def _first_boundary(token_texts: Sequence[str], position: int) -> int:
    """Return how many tokens it takes to reach a position in the text."""
    reached = 0
    for count, text in enumerate(token_texts, start=1):
        reached += len(text)
        if reached >= position:
            return count
    return len(token_texts)
