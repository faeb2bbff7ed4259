"""Logprobs as OpenAI's two routes word them: each token with its text, its bytes and its likeliest alternatives."""

import codecs
import math
from collections.abc import Callable, Sequence

from tokensqueeze.serving.generation import TokenLogprob
from tokensqueeze.serving.responses import ChatTokenLogprob, CompletionLogprobs, TopLogprob

_LOWEST = -9999.0
"""JSON has no infinity; OpenAI's API says this instead."""


def chat_logprobs(
    bytes_of: Callable[[int], bytes], token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
) -> list[ChatTokenLogprob]:
    """Return one entry per token; `bytes_of` gives what a token stands for, special or not."""
    entries = []
    for token, logprob in zip(token_ids, logprobs, strict=True):
        own = bytes_of(token)
        top = [_top(bytes_of(other), value) for other, value in logprob.top]
        entries.append(
            ChatTokenLogprob.model_construct(
                token=_spelled(own), logprob=_finite(logprob.logprob), bytes=list(own), top_logprobs=top
            )
        )
    return entries


class TextLogprobs:
    """Words the logprobs of one completion of /v1/completions, piece by piece."""

    def __init__(self, bytes_of: Callable[[int], bytes], shown_bytes_of: Callable[[int], bytes]):
        """`shown_bytes_of` gives what a token adds to the text: nothing for most special ones."""
        self._bytes_of, self._shown_bytes_of = bytes_of, shown_bytes_of
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._offset = 0

    def add(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> CompletionLogprobs:
        tokens, offsets, top = [], [], []
        for token, logprob in zip(token_ids, logprobs, strict=True):
            text = self._text(token)
            # Two tokens may have one text: the likelier one is told.
            alternatives: dict[str, float] = {}
            for other, value in logprob.top:
                alternatives.setdefault(self._text(other), _finite(value))
            alternatives.setdefault(text, _finite(logprob.logprob))
            tokens.append(text)
            top.append(alternatives)
            offsets.append(self._offset)
            self._offset += len(self._decode(self._shown_bytes_of(token)))
        return CompletionLogprobs.model_construct(
            tokens=tokens,
            token_logprobs=[_finite(logprob.logprob) for logprob in logprobs],
            top_logprobs=top,
            text_offset=offsets,
        )

    def _text(self, token: int) -> str:
        spelled = _spelled(own := self._bytes_of(token))
        return f"bytes:{spelled}" if _is_partial(own) else spelled


def _top(own: bytes, logprob: float) -> TopLogprob:
    return TopLogprob.model_construct(token=_spelled(own), logprob=_finite(logprob), bytes=list(own))


def _spelled(own: bytes) -> str:
    """Return a token's text; where its bytes are no whole characters, each byte's hexadecimal digits."""
    return "".join(f"\\x{byte:02x}" for byte in own) if _is_partial(own) else own.decode()


def _is_partial(own: bytes) -> bool:
    try:
        own.decode()
    except UnicodeDecodeError:
        return True
    return False


def _finite(logprob: float) -> float:
    return _LOWEST if math.isnan(logprob) else max(float(logprob), _LOWEST)
