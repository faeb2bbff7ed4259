"""From draws to candidates, with the demo's tokenizer, in which a blank line is one token."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.engines.base import Generation
from tokensqueeze.engines.checkpoint import demo_model_dir, eos_token_ids, load_tokenizer
from tokensqueeze.rewriters.step_candidates import distinct_candidates, draw_length, ending_tokens, stop_texts
from tokensqueeze.schema import Candidate
from tokensqueeze.traces.token_texts import TokenTexts

END = "</think>"


@pytest.fixture(scope="module")
def tokens() -> TokenTexts:
    return TokenTexts(load_tokenizer(demo_model_dir()), eos_token_ids(demo_model_dir()))


def draw(tokens: TokenTexts, text: str) -> Generation:
    return Generation(tokens.encode(text), "stop")


def candidates(
    tokens: TokenTexts, texts: list[str], *, step_text: str = "47 + 38 = 85.", most: int | None = None
) -> list[Candidate]:
    draws = [draw(tokens, text) for text in texts]
    return distinct_candidates(draws, step_text=step_text, think_end=END, max_tokens=most, tokens=tokens)


def test_a_draw_ends_before_the_blank_line_or_the_end_of_thinking(tokens: TokenTexts) -> None:
    found = candidates(tokens, ["It is 85.\n\n", "So 85.\n</think>", "Yes.\n\nAnd more.\n\n", "No.</think>\n\nSo."])
    assert [c.text for c in found] == ["It is 85.", "So 85.", "Yes.", "No."]
    assert [tokens.text(c.token_ids) for c in found] == ["It is 85.", "So 85.", "Yes.", "No."]


def test_equal_draws_are_one_candidate_that_counts_them(tokens: TokenTexts) -> None:
    found = candidates(tokens, ["b.\n\n", "a.\n\n", "b.\n\n", "b.\n</think>", "never ends", "a.\n\n"])
    assert [(c.text, c.draws, c.first_draw) for c in found] == [("b.", 3, 0), ("a.", 2, 1)]


def test_draws_that_never_end_or_end_with_nothing_give_no_candidate(tokens: TokenTexts) -> None:
    assert candidates(tokens, ["so 47 + 38", "", "\n\n", "\n</think>", "</think>", " \n\n"]) == []
    (end,) = eos_token_ids(demo_model_dir())
    ended = Generation([*tokens.encode("So 5."), end], "stop")
    assert distinct_candidates([ended], step_text="x", think_end=END, max_tokens=None, tokens=tokens) == []


def test_a_candidate_takes_over_the_ending_of_the_step_it_stands_in_for(tokens: TokenTexts) -> None:
    # Some steps own the white space behind them: the last one's line break, or a token like ".\n\n".
    for ending in ("\n", "\n\n", ""):
        for written in ("Yes.\n\n", "Yes.\n</think>", "Yes.</think>"):
            (found,) = candidates(tokens, [written], step_text="47 + 38 = 85." + ending)
            assert found.text == "Yes." + ending
            assert tokens.text(found.token_ids) == found.text


def test_the_drawn_tokens_are_kept_even_where_the_tokenizer_would_spell_otherwise(tokens: TokenTexts) -> None:
    usual = tokens.encode("Then, yes.")
    letters = [token for character in "Then, yes." for token in tokens.encode(character)]
    assert len(letters) > len(usual) and tokens.text(letters) == "Then, yes."
    blank = tokens.encode("\n\n")
    draws = [Generation([*letters, *blank], "stop"), Generation([*usual, *blank], "stop")]
    found = distinct_candidates(draws, step_text="x", think_end=END, max_tokens=None, tokens=tokens)
    # Two ways to spell one text are two candidates: their lengths differ, and so does what the model sees.
    assert [(c.token_ids, c.text) for c in found] == [(letters, "Then, yes."), (usual, "Then, yes.")]


def test_candidates_over_the_most_tokens_are_left_out(tokens: TokenTexts) -> None:
    length = len(tokens.encode("So it is 85."))
    texts = ["So it is 85.\n\n", "85.\n\n"]
    assert [c.text for c in candidates(tokens, texts, most=length)] == ["So it is 85.", "85."]
    assert [c.text for c in candidates(tokens, texts, most=length - 1)] == ["85."]
    assert [c.first_draw for c in candidates(tokens, texts, most=length - 1)] == [1]


def test_a_draw_may_be_one_token_shorter_than_the_step_and_its_ending() -> None:
    # A step of 10 tokens: 9 of its own, and 2 to write the blank line or the tag.
    assert draw_length(KLBound(), 10) == 11
    assert draw_length(KLBound(), 2) == 3
    assert draw_length(KLBound(), 1) == 0


def test_the_reliable_rewriters_draws_are_not_cut_at_the_steps_length() -> None:
    assert {draw_length(Reliable(max_step_tokens=96), tokens) for tokens in (1, 2, 500)} == {98}


def test_a_draw_has_room_for_a_tag_that_is_spelled_over_several_tokens(tokens: TokenTexts) -> None:
    assert ending_tokens(END, tokens) == 2
    apart = len(tokens.encode("\n</end>"))
    assert apart > 3 and ending_tokens("</end>", tokens) == apart
    assert draw_length(KLBound(), 10, apart) == 9 + apart
    assert draw_length(KLBound(), 1, apart) == 0
    assert draw_length(Reliable(max_step_tokens=96), 10, apart) == 96 + apart


def test_drawn_tokens_are_kept_however_many_their_ending_took(tokens: TokenTexts) -> None:
    letters = [token for character in "Then, yes." for token in tokens.encode(character)]
    for blank in (" \n \n\n", "   \n</think>", "\n \n \n</think>"):
        ending = [token for character in blank.removesuffix(END) for token in tokens.encode(character)]
        draw = Generation([*letters, *ending, *(tokens.encode(END) if blank.endswith(END) else [])], "stop")
        (found,) = distinct_candidates([draw], step_text="x", think_end=END, max_tokens=None, tokens=tokens)
        assert found.token_ids == letters


def test_a_draw_that_the_tokenizer_cannot_spell_is_no_candidate() -> None:
    # This one composes characters, so what it encodes is not what the model wrote: e and an accent become é.
    symbols = list(bytes_to_unicode().values())
    bpe = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate([*symbols, "<end>"])}, []))
    bpe.normalizer, bpe.decoder = normalizers.NFC(), decoders.ByteLevel()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    composing = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>"), frozenset({256}))
    written = "e\u0301."
    raw = [symbols.index(bytes_to_unicode()[byte]) for byte in f"{written}\n\n".encode()]
    assert composing.text(raw) == f"{written}\n\n" and composing.encode(written) != raw[:-2]

    def found(step_text: str) -> list[tuple[str, list[int]]]:
        draws = [Generation(raw, "stop")]
        own = distinct_candidates(draws, step_text=step_text, think_end=END, max_tokens=None, tokens=composing)
        return [(candidate.text, candidate.token_ids) for candidate in own]

    assert found("x") == [(written, raw[:-2])]
    assert found("x\t") == []


def test_a_draw_ends_at_a_blank_line_and_at_the_end_of_thinking() -> None:
    assert stop_texts(END) == ("\n\n", "</think>")
