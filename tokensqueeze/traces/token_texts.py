"""Text and tokens of one tokenizer: each token by itself, completions whole, and the tokens of a given text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenTexts:
    """Decodes and encodes without adding, dropping or tidying anything but the end-of-sequence token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", eos_token_ids: frozenset[int]):
        self._tokenizer, self._eos_token_ids = tokenizer, eos_token_ids
        self._single: dict[int, str] = {}
        self._end_texts = [text for token in sorted(eos_token_ids) if (text := self.text([token]))]

    def each(self, token_ids: Sequence[int]) -> list[str]:
        """Return each token's own text; where a character spans tokens, its parts are replacement characters.

        The token that ended a completion has none, as in `completion`.
        """
        for token in set(token_ids) - self._single.keys():
            self._single[token] = self.text([token])
        texts = [self._single[token] for token in token_ids]
        if token_ids and token_ids[-1] in self._eos_token_ids:
            texts[-1] = ""
        return texts

    def text(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def completion(self, token_ids: Sequence[int]) -> str:
        """Return a completion's text without the token that ended it."""
        ended = bool(token_ids) and token_ids[-1] in self._eos_token_ids
        return self.text(token_ids[:-1] if ended else token_ids)

    def holds_end(self, text: str) -> bool:
        """Tell whether an end-of-sequence token is in the text, or is spelled out in it, so that encoding would make it one."""
        return any(end_text in text for end_text in self._end_texts)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids
