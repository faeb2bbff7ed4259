"""Turn draws from a step's original prefix into candidates for the step (METHOD, intra-step refinement; paper section 3.2).

A candidate is what the model wrote before the next blank line or before it closed its thinking; it takes over the ending of
the step it stands in for, so that one that would have thought on can stand in for a last step, and the other way round.

Its tokens are the drawn ones wherever these spell it; where none of their boundaries fits (drawn ".\\n\\n", and the trace has
the blank line already), the tokenizer's own for its text. Either way they decode to its text, and a trace with candidates in
the places of its steps decodes to the joined texts. Encoding that text afresh may give other ids, as it may for any sample.
"""

from collections.abc import Sequence

from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.engines.base import Generation
from tokensqueeze.schema import Candidate
from tokensqueeze.traces.anatomy import STEP_DELIMITER
from tokensqueeze.traces.token_texts import TokenTexts

ENDING_TOKENS = 2
"""A blank line, or a line break and a closing tag of one token, take at most so many, which a draw writes beyond the step."""


def stop_texts(think_end: str) -> tuple[str, ...]:
    """Return the texts that end a draw."""
    return (STEP_DELIMITER, think_end)


def ending_tokens(think_end: str, tokens: TokenTexts) -> int:
    """Return how many tokens a draw may need to end: more than usual where the closing tag is spelled over several."""
    return max(ENDING_TOKENS, *(len(tokens.encode(ending)) for ending in (STEP_DELIMITER, f"\n{think_end}")))


def draw_length(rewriter: KLBound | Reliable, step_tokens: int, ending_tokens: int = ENDING_TOKENS) -> int:
    """Return how many tokens a draw may have; 0 if there is nothing to draw.

    By the KL bound only a candidate strictly shorter than the step can win, so drawing stops there, and a step of one
    token has none. The reliable rewriter must see what the model does when it is not cut.
    """
    if isinstance(rewriter, Reliable):
        return rewriter.max_step_tokens + ending_tokens
    return step_tokens - 1 + ending_tokens if step_tokens > 1 else 0


def distinct_candidates(
    draws: Sequence[Generation], *, step_text: str, think_end: str, max_tokens: int | None, tokens: TokenTexts
) -> list[Candidate]:
    """Return the distinct candidates among the draws, each with its number of draws, in order of first appearance.

    `step_text` is the text of the step's own tokens: what it has behind its last visible character becomes the
    candidates' ending. Draws that never ended, ended with nothing, hold an end-of-sequence token, or are over `max_tokens`
    long give no candidate.
    """
    ending = step_text[len(step_text.rstrip()) :]
    found: dict[tuple[int, ...], Candidate] = {}
    for index, draw in enumerate(draws):
        content = _content(tokens.text(draw.token_ids), think_end)
        if not content or tokens.holds_end(content):
            continue
        ids = _tokens_of(content + ending, draw.token_ids, tokens)
        if ids is None or (max_tokens is not None and len(ids) > max_tokens):
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


def _tokens_of(text: str, drawn: Sequence[int], tokens: TokenTexts) -> list[int] | None:
    """Return the first drawn tokens if they spell the text, else the tokenizer's own, else, if these don't, nothing."""
    for end in range(len(drawn), 0, -1):
        spelled = tokens.text(drawn[:end])
        if spelled == text:
            return list(drawn[:end])
        if len(spelled) < len(text):
            break
    # Some tokenizers normalise what they encode, and then it is another text.
    encoded = tokens.encode(text)
    return encoded if tokens.text(encoded) == text else None
