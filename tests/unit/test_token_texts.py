"""Text and tokens of the demo's tokenizer, a byte-level one like those of the models this is for."""

import pytest

from tokensqueeze.engines.checkpoint import demo_model_dir, eos_token_ids, load_tokenizer
from tokensqueeze.traces.token_texts import TokenTexts


@pytest.fixture(scope="module")
def tokens() -> TokenTexts:
    return TokenTexts(load_tokenizer(demo_model_dir()), eos_token_ids(demo_model_dir()))


@pytest.mark.parametrize(
    "text",
    [
        "47 + 38 - 7 = 78.\n\nSo it is 78.\n</think>\n\nThe answer is \\boxed{78}.",
        " , . ! ?  n't 's  two  spaces ",
        "\n\n\n \t\n",
        "naïve → 数 🙂",
        "",
    ],
)
def test_a_text_comes_back_from_its_tokens_untidied(tokens: TokenTexts, text: str) -> None:
    assert tokens.text(tokens.encode(text)) == text


def test_each_token_has_the_text_it_adds(tokens: TokenTexts) -> None:
    ids = tokens.encode("First, 47 + 38 = 85.\n\nSo , yes.\n</think>")
    each = tokens.each(ids)
    assert "".join(each) == "First, 47 + 38 = 85.\n\nSo , yes.\n</think>"
    # Asked again, and in another order, it is the same.
    assert tokens.each(ids[::-1]) == each[::-1]
    assert tokens.each([]) == []


def test_a_character_over_several_tokens_shows_as_replacement_characters(tokens: TokenTexts) -> None:
    ids = tokens.encode("🙂")
    assert len(ids) == 4
    assert set("".join(tokens.each(ids))) == {"\ufffd"}


def test_encoding_adds_no_special_token_and_keeps_those_written(tokens: TokenTexts) -> None:
    (end,) = tokens.encode("<|im_end|>")
    assert tokens.text([end]) == "<|im_end|>"
    assert tokens.each(tokens.encode("47")) == ["4", "7"]


def test_a_completion_loses_the_token_that_ended_it_and_no_other(tokens: TokenTexts) -> None:
    (end,) = eos_token_ids(demo_model_dir())
    ids = tokens.encode("So 5.")
    assert tokens.completion([*ids, end]) == "So 5."
    assert tokens.completion(ids) == "So 5."
    assert tokens.completion([end, *ids, end]) == tokens.text([end]) + "So 5."
    assert tokens.completion([*ids, end, end]) == "So 5." + tokens.text([end])
    assert tokens.completion([]) == ""


def test_the_token_that_ended_a_completion_has_no_text_of_its_own(tokens: TokenTexts) -> None:
    (end,) = eos_token_ids(demo_model_dir())
    ids = tokens.encode("So 5.")
    assert tokens.each([*ids, end]) == [*tokens.each(ids), ""]
    assert tokens.each([end, *ids]) == [tokens.text([end]), *tokens.each(ids)]
    assert "".join(tokens.each([end, *ids, end])) == tokens.completion([end, *ids, end])


def test_an_end_of_sequence_token_is_found_in_a_text(tokens: TokenTexts) -> None:
    assert tokens.holds_end("So <|im_end|>5.")
    assert not tokens.holds_end("So <|im_start|>5 <|im_end|")
    assert not tokens.holds_end("")
