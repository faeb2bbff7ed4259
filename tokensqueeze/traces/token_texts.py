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

    def each(self, token_ids: Sequence[int]) -> list[str]:
        """Return each token's own text; where a character spans tokens, its parts are replacement characters."""
        for token in set(token_ids) - self._single.keys():
            self._single[token] = self.text([token])
        return [self._single[token] for token in token_ids]

    def text(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def completion(self, token_ids: Sequence[int]) -> str:
        """Return a completion's text without the token that ended it."""
        ended = bool(token_ids) and token_ids[-1] in self._eos_token_ids
        return self.text(token_ids[:-1] if ended else token_ids)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids
