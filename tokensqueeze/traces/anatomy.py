"""Where a completion's thinking ends and which of its tokens are which step.

A step is a run of text between blank lines, kept as a span of the trace's own tokens. What stands between two spans (the
blank line, the closing tag) stays as it is, so replacing no span gives back the same tokens: splitting and joining are
exact inverses. Where a token holds a step's last character and the blank line too (".\\n\\n"), it belongs to the step.
"""

import re
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
    last paragraph; that paragraph is no step, so that no rewriting can touch the answer.
    """
    text = "".join(token_texts)
    closing = text.rfind(think_end)
    paragraphs = _paragraphs(text if closing < 0 else text[:closing])
    if closing < 0:
        paragraphs = paragraphs[:-1]
    ends = [0, *accumulate(map(len, token_texts))]
    spans: list[Span] = []
    token = 0
    for start, end in paragraphs:
        while token < len(token_texts) and ends[token + 1] <= start:
            token += 1
        first = token
        while token < len(token_texts) and ends[token] < end:
            token += 1
        if token > first:
            spans.append(Span(first, token))
    return spans


def replace_spans(token_ids: Sequence[int], replacements: Mapping[Span, Sequence[int]]) -> list[int]:
    """Return the tokens with some spans replaced; the spans must not overlap."""
    joined: list[int] = []
    position = 0
    for span in sorted(replacements, key=lambda span: span.start):
        joined += [*token_ids[position : span.start], *replacements[span]]
        position = span.end
    return [*joined, *token_ids[position:]]


def _paragraphs(text: str) -> list[tuple[int, int]]:
    """Return where each paragraph starts and ends, white space at its ends left out, blank ones too."""
    starts = [0, *(match.end() for match in _SEPARATOR.finditer(text))]
    stops = [*(match.start() for match in _SEPARATOR.finditer(text)), len(text)]
    found = []
    for start, stop in zip(starts, stops, strict=True):
        content = text[start:stop]
        start += len(content) - len(content.lstrip())
        stop = start + len(content.strip())
        if stop > start:
            found.append((start, stop))
    return found


def _first_boundary(token_texts: Sequence[str], position: int) -> int:
    """Return how many tokens it takes to reach a position in the text."""
    reached = 0
    for count, text in enumerate(token_texts, start=1):
        reached += len(text)
        if reached >= position:
            return count
    return len(token_texts)
