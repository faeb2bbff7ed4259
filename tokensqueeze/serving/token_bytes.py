"""The bytes that each token of a vocabulary stands for.

Joined, the bytes of a completion are its text in UTF-8: so text can be put together in linear time, however the tokens arrive.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, hidden: frozenset[int], shown: frozenset[str] = frozenset()):
        """`hidden` tokens have no text, nor have the special ones but those that spell what is `shown`."""
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = str(getattr(backend, "decoder", ""))
        self._byte_level, self._byte_fallback = "ByteLevel" in decoder, "ByteFallback" in decoder
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
        self._hidden = hidden | {i for i in special if tokenizer.convert_ids_to_tokens(i) not in shown}
        self._anchor: list[int] = tokenizer("a", add_special_tokens=False).input_ids
        self._anchor_length = len(self._decode([]))
        self._shown: dict[int, bytes] = {}
        self._own: dict[int, bytes] = {}

    def shown(self, token: int) -> bytes:
        """Return what the token adds to a completion's text."""
        found = self._shown.get(token)
        if found is None:
            found = self._shown[token] = b"" if token in self._hidden else self.own(token)
        return found

    def own(self, token: int) -> bytes:
        """Return what the token stands for, hidden or not; nothing if the vocabulary has none with this id."""
        found = self._own.get(token)
        if found is None:
            found = self._own[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> bytes:
        spelled = self._tokenizer.convert_ids_to_tokens(token) if 0 <= token < len(self._tokenizer) else None
        if not isinstance(spelled, str):
            return b""
        if self._byte_level:
            try:
                return bytes(_BYTES[character] for character in spelled)
            except KeyError:  # a token that was added, spelled as its text
                return spelled.encode()
        byte = _BYTE_TOKEN.fullmatch(spelled) if self._byte_fallback else None
        # Behind another token, since decoders drop the space a text begins with.
        return bytes.fromhex(byte[1]) if byte else self._decode([token])[self._anchor_length :].encode()

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(
            [*self._anchor, *token_ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text if isinstance(text, str) else "".join(text)


def _byte_characters() -> dict[str, int]:
    """Return the characters by which byte-level vocabularies spell bytes: themselves where printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_characters()
