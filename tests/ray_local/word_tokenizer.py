"""A tokenizer whose tokens are whole words, for models that are to know a few answers by heart."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of these words, <pad> and <eos> among them; a token's id is its place."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
