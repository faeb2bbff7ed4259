"""A response that was made elsewhere, as the tokens that this model would have drawn for it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokensqueeze.schema import FinishReason
from tokensqueeze.traces.token_texts import TokenTexts


@dataclass(frozen=True)
class ImportedCompletion:
    token_ids: list[int]
    finish_reason: FinishReason
    notes: list[str]
    """What was done to the response, or has to be known of it."""


def imported_completion(
    text: str,
    finish_reason: FinishReason | None,
    *,
    prompt: str,
    tokens: TokenTexts,
    eos_token_ids: Collection[int],
    ending: int | None,
    room: int,
    think_end: str,
) -> ImportedCompletion:
    """Return a response's tokens, with `ending`, the end-of-sequence token, behind one that ended by itself.

    `room` is how many tokens the model's context has behind the prompt: a longer response is cut there, and is then one that
    hit its limit. What a file has behind an end-of-sequence token is not part of the response.
    """
    text, notes = _behind_the_prompt(text, prompt, think_end)
    token_ids = tokens.encode(text)
    if tokens.text(token_ids) != text:
        notes.append("not spelled the same by this tokenizer")
    if finish_reason is None:
        notes.append("no finish_reason, taken as stop")
    reason: FinishReason = finish_reason or "stop"
    end = next((index for index, token in enumerate(token_ids) if token in eos_token_ids), None)
    if end is not None:
        if end + 1 < len(token_ids):
            notes.append("cut behind an end-of-sequence token")
        token_ids, reason = token_ids[: end + 1], "stop"
    elif reason == "stop" and ending is not None:
        token_ids = [*token_ids, ending]
    if len(token_ids) > room:
        notes.append("cut at the model's context")
        token_ids, reason = token_ids[:room], "length"
    return ImportedCompletion(token_ids, reason, notes)


def _behind_the_prompt(text: str, prompt: str, think_end: str) -> tuple[str, list[str]]:
    """Return the response without the opening of its thinking where the prompt has that already."""
    if not think_end.startswith("</"):
        return text, []
    opening = think_end.replace("</", "<", 1)
    _, opened, behind = prompt.rpartition(opening)
    opens = text.lstrip().startswith(opening)
    if not opened or behind.strip():
        closes_unopened = think_end in text and not opens
        return text, [f"has {think_end}, which neither it nor the prompt has opened"] if closes_unopened else []
    if not opens:
        return text, []
    rest = text.lstrip().removeprefix(opening)
    # The line's end is the prompt's too, if it has one.
    return rest.removeprefix(behind), [f"{opening} left out, the prompt has it"]


def repeats(texts: Sequence[str]) -> int:
    """Return how many of a problem's responses are copies of another of them."""
    return len(texts) - len(set(texts))
