"""Turn draws from a step's original prefix into candidates for the step (METHOD, intra-step refinement; paper section 3.2).

A candidate is what the model wrote before the next blank line or before it closed its thinking; it takes over the ending of
the step it stands in for, so that one that would have thought on can stand in for a last step, and the other way round.
"""

from collections.abc import Sequence

from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.engines.base import Generation
from tokensqueeze.schema import Candidate
from tokensqueeze.traces.anatomy import STEP_DELIMITER
from tokensqueeze.traces.token_texts import TokenTexts

ENDING_TOKENS = 2
"""A blank line or a closing tag takes one or two tokens, which a draw writes beyond the step itself."""


def stop_texts(think_end: str) -> tuple[str, ...]:
    """Return the texts that end a draw."""
    return (STEP_DELIMITER, think_end)


def draw_length(rewriter: KLBound | Reliable, step_tokens: int) -> int:
    """Return how many tokens a draw may have; 0 if there is nothing to draw.

    By the KL bound only a candidate strictly shorter than the step can win, so drawing stops there, and a step of one
    token has none. The reliable rewriter must see what the model does when it is not cut.
    """
    if isinstance(rewriter, Reliable):
        return rewriter.max_step_tokens + ENDING_TOKENS
    return step_tokens - 1 + ENDING_TOKENS if step_tokens > 1 else 0


def distinct_candidates(
    draws: Sequence[Generation], *, step_text: str, think_end: str, max_tokens: int | None, tokens: TokenTexts
) -> list[Candidate]:
    """Return the distinct candidates among the draws, each with its number of draws, in order of first appearance.

    `step_text` is the text of the step's own tokens: what it has behind its last visible character becomes the
    candidates' ending. Draws that never ended, ended with nothing, or are over `max_tokens` long give no candidate.
    """
    ending = step_text[len(step_text.rstrip()) :]
    found: dict[tuple[int, ...], Candidate] = {}
    for index, draw in enumerate(draws):
        content = _content(tokens.text(draw.token_ids), think_end)
        if not content:
            continue
        ids = _tokens_of(content + ending, draw.token_ids, tokens)
        if max_tokens is not None and len(ids) > max_tokens:
            continue
        known = found.get(tuple(ids))
        found[tuple(ids)] = Candidate(
            text=content + ending,
            token_ids=ids,
            draws=known.draws + 1 if known else 1,
            first_draw=known.first_draw if known else index,
        )
    return list(found.values())


def _content(text: str, think_end: str) -> str | None:
    """Return what stands before the draw's ending, or nothing if it has none."""
    positions = [position for stop in stop_texts(think_end) if (position := text.find(stop)) >= 0]
    return text[: min(positions)].rstrip() if positions else None


def _tokens_of(text: str, drawn: Sequence[int], tokens: TokenTexts) -> list[int]:
    """Return the drawn tokens that spell the text, or the tokenizer's own where none of the last boundaries fits."""
    for end in range(len(drawn), max(0, len(drawn) - ENDING_TOKENS - 1), -1):
        if tokens.text(drawn[:end]) == text:
            return list(drawn[:end])
    return tokens.encode(text)
