"""Tokens read as text while they arrive, held against decoding the whole completion and splitting it."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.unit.scripted_source import demo_tokens
from tokensqueeze.engines.checkpoint import demo_model_dir, eos_token_ids, load_tokenizer
from tokensqueeze.serving.completion_text import CompletionText, ReadingRules
from tokensqueeze.serving.token_bytes import TokenBytes
from tokensqueeze.traces.anatomy import thinking_tokens
from tokensqueeze.traces.token_texts import TokenTexts

TOKENIZER = load_tokenizer(demo_model_dir())
EOS = eos_token_ids(demo_model_dir())
TAGS = ("<think>", "</think>")
BYTES = TokenBytes(TOKENIZER, hidden=EOS, shown=frozenset(TAGS))
CHAT = ReadingRules("</think>", "<think>")
# A tag that is no token of the vocabulary: it spans several.
SPELLED = ReadingRules("[/end]", "[end]")
EMOJI = demo_tokens("🙂")


@dataclass(frozen=True)
class Read:
    reasoning: str
    answer: str
    num_reasoning: int
    num_answer: int
    stopped: bool = False


def read(token_ids: Sequence[int], rules: ReadingRules, cuts: Sequence[int] = ()) -> Read:
    """Read a completion in pieces that are cut behind as many tokens as `cuts` say."""
    text = CompletionText(BYTES.shown, rules)
    borders = sorted({0, len(token_ids), *(cut % (len(token_ids) + 1) for cut in cuts)})
    parts = [text.add(token_ids[start:stop]) for start, stop in pairwise(borders)]
    parts.append(text.end())
    return Read(
        "".join(part.reasoning for part in parts),
        "".join(part.answer for part in parts),
        sum(part.num_reasoning for part in parts),
        sum(part.num_answer for part in parts),
        text.stopped,
    )


def said(text: str, rules: ReadingRules = CHAT) -> Read:
    return read(demo_tokens(text), rules)


def test_reasoning_and_answer_come_apart_at_the_closing_tag() -> None:
    found = said("2 + 3 = 5.\n</think>\n\nThe answer is 5.<|im_end|>")
    assert (found.reasoning, found.answer) == ("2 + 3 = 5.", "The answer is 5.")


def test_tokens_are_counted_as_the_training_counts_them() -> None:
    ids = demo_tokens("2 + 3 = 5.\n</think>\n\nThe answer is 5.<|im_end|>")
    found = read(ids, CHAT)
    assert found.num_reasoning == thinking_tokens(TokenTexts(TOKENIZER, EOS).each(ids), "</think>") == ids.index(4) + 1
    assert found.num_reasoning + found.num_answer == len(ids)


def test_thinking_that_is_never_closed_is_all_there_is() -> None:
    found = said("2 + 3 = \n\n")
    assert (found.reasoning, found.answer, found.num_answer) == ("2 + 3 =", "", 0)
    assert found.num_reasoning == len(demo_tokens("2 + 3 = \n\n"))


def test_an_opening_tag_that_the_model_writes_is_dropped() -> None:
    assert said("\n<think>\n2 + 3\n</think>\n\n5").reasoning == "2 + 3"
    assert said("2 <think> 3</think>5").reasoning == "2 <think> 3"
    assert said("[end]2 + 3[/end]5", SPELLED).reasoning == "2 + 3"
    # What only began like a tag is text.
    assert said("[en", SPELLED).reasoning == "[en"


def test_blank_lines_go_and_an_indentation_stays() -> None:
    assert said("a</think>\n\n  \n    return 5\n").answer == "    return 5\n"
    assert said("a</think>  5").answer == "5"
    assert said("a</think>\n\n \n").answer == ""


def test_a_model_that_does_not_think_has_an_answer_only() -> None:
    found = said(" 5 </think>\n\n", ReadingRules(None))
    assert (found.reasoning, found.answer, found.num_reasoning) == ("", " 5 </think>\n\n", 0)


def test_special_tokens_but_the_tags_are_no_text() -> None:
    assert said("<|im_start|>a</think>5<|endoftext|>6<|im_end|>").answer == "56"
    assert said("<think>a</think>5<|im_end|>", ReadingRules("</think>", apart=False)).answer == "<think>a</think>5"


def test_a_stop_text_ends_the_answer_and_not_the_reasoning() -> None:
    rules = ReadingRules("</think>", "<think>", stop_texts=("So", "xyz"))
    found = said("So 5. So it is.</think>\n\nThus 5. So there.<|im_end|>", rules)
    assert (found.reasoning, found.answer, found.stopped) == ("So 5. So it is.", "Thus 5. ", True)
    # As many tokens as it takes to complete the stop text.
    counted = next(k for k in range(99) if "So" in TOKENIZER.decode(demo_tokens("\n\nThus 5. So there.")[:k]))
    assert found.num_answer == counted


def test_where_nothing_is_kept_apart_a_stop_text_acts_on_the_whole() -> None:
    found = said("Thus 5. So</think> 5", ReadingRules("</think>", apart=False, stop_texts=("5. S",)))
    assert (found.reasoning, found.answer, found.num_answer, found.stopped) == ("", "Thus ", 0, True)


def test_of_several_stop_texts_the_first_to_be_complete_counts() -> None:
    assert said("abcdef", ReadingRules(None, stop_texts=("bcde", "cd"))).answer == "ab"
    assert said("abcdef", ReadingRules(None, stop_texts=("cd", "bcd", "d"))).answer == "a"


def test_what_may_be_the_beginning_of_a_stop_text_is_held_back_until_it_is_not() -> None:
    text = CompletionText(BYTES.shown, ReadingRules(None, stop_texts=("aab",)))
    (a,), (b,), (c,) = demo_tokens("a"), demo_tokens("b"), demo_tokens("c")
    assert [text.add([token]).answer for token in (c, a, a, a, c, a)] == ["c", "", "", "a", "aac", ""]
    assert text.end().answer == "a"
    text = CompletionText(BYTES.shown, ReadingRules(None, stop_texts=("aab",)))
    assert [text.add([token]).answer for token in (a, a, a, b, c)] == ["", "", "a", "", ""]
    assert text.end().answer == "" and text.stopped


def test_a_character_is_sent_when_its_last_byte_has_come() -> None:
    text = CompletionText(BYTES.shown, ReadingRules(None))
    assert [text.add([token]).answer for token in EMOJI] == ["", "", "", "🙂"]
    text.add(EMOJI[:2])
    assert text.end().answer == "\ufffd"


def plain_split(text: str, rules: ReadingRules) -> tuple[str, str]:
    """What the whole text gives: an independent and slow way to say what reading token by token must come to."""
    reasoning, answer = "", text
    if rules.think_end is not None and rules.apart:
        reasoning, tag, answer = text.partition(rules.think_end)
        reasoning = reasoning.strip()
        opening = rules.think_start or ""
        reasoning = reasoning.removeprefix(opening).strip() if opening else reasoning
        blank = re.match(r"\s*", answer)
        space = blank[0] if blank else ""
        kept = space.rpartition("\n")[2] if "\n" in space else ""
        answer = kept + answer[len(space) :] if tag and answer.strip() else ""
    for end in range(1, len(answer) + 1):
        complete = [stop for stop in rules.stop_texts if answer[:end].endswith(stop)]
        if complete:
            return reasoning, answer[: end - max(map(len, complete))]
    return reasoning, answer


PARTS = [
    *map(
        demo_tokens, ("</think>", "<think>", "[/end]", "[end]", "[/", "[e", "\n\n", " ", "\t", "a", "ab", "b", "aab", ".", "é")
    ),
    *map(demo_tokens, ("<|im_end|>", "<|endoftext|>", "🙂", "</", "think>")),
    EMOJI[:2],
    EMOJI[3:],
    EMOJI[1:2],
    [501],
    [9999],
]
RULES = [
    CHAT,
    SPELLED,
    ReadingRules("</think>", None),
    ReadingRules(None),
    ReadingRules("</think>", "<think>", stop_texts=("ab", "aab", "b.")),
    ReadingRules("[/end]", "[end]", stop_texts=("\n\n", "aa")),
    ReadingRules(None, stop_texts=("aba", "b a", "é🙂")),
    ReadingRules("[/end]", apart=False, stop_texts=("a[/", "</think>", "[e")),
]


@given(
    st.lists(st.sampled_from(PARTS), max_size=14).map(lambda parts: [token for part in parts for token in part]),
    st.sampled_from(RULES),
    st.lists(st.integers(0, 40), max_size=6),
)
@example(demo_tokens("[end]a[/en[/end] ab"), SPELLED, [3, 7])
def test_however_a_completion_is_cut_it_reads_as_decoded_whole(ids: list[int], rules: ReadingRules, cuts: list[int]) -> None:
    found = read(ids, rules, cuts)
    assert found == read(ids, rules) == read(ids, rules, range(len(ids)))
    shown = [i for i in ids if i in (3, 4) or (i < len(TOKENIZER) and i not in TOKENIZER.all_special_ids)]
    decoded = str(TOKENIZER.decode(shown, clean_up_tokenization_spaces=False))
    assert (found.reasoning, found.answer) == plain_split(decoded, rules)
    if not found.stopped:
        assert found.num_reasoning + found.num_answer == len(ids)
        # The fewest tokens whose text holds the tag.
        texts = (str(TOKENIZER.decode([t for t in ids[:k] if t in shown])) for k in range(len(ids) + 1))
        held = next((k for k, text in enumerate(texts) if rules.think_end and rules.think_end in text), len(ids))
        assert found.num_reasoning == (0 if rules.think_end is None else held)


@pytest.mark.parametrize("text", [" ", "\ufffd", "<", "a", "\n"])
@pytest.mark.parametrize("closed", [True, False])
def test_the_time_is_linear_in_the_tokens(text: str, closed: bool) -> None:
    # 60,000 tokens take some tenths of a second; were each read with all before it, minutes.
    ids = [EMOJI[1]] * 60_000 if text == "\ufffd" else demo_tokens(text) * 60_000
    start = time.process_time()
    read(
        [*demo_tokens("a</think>"), *ids] if closed else ids,
        ReadingRules("</think>", "<think>", stop_texts=("ab", "<<<b")),
        range(0, 60_000, 7),
    )
    assert time.process_time() - start < 5


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A vocabulary as SentencePiece makes them: ▁ for a space, and bytes for what has no token."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁the",
        "▁an",
        "swer",
        "数",
        "a",
        "▁a",
        "\n",
    ]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]  # type: ignore[list-item]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_vocabularies_with_byte_tokens_and_underlined_spaces_are_read_too() -> None:
    tokenizer = byte_fallback_tokenizer()
    own = TokenBytes(tokenizer, hidden=frozenset({2}))
    spelled = ["▁the", "▁an", "swer", "▁", "数", *(f"<0x{byte:02X}>" for byte in "🙂".encode()), "\n", "</s>"]
    ids = [tokenizer.get_vocab()[token] for token in spelled]
    assert b"".join(own.shown(token) for token in ids).decode() == " the answer 数🙂\n"
    # Decoded whole it is the same, but that decoders drop the first space, which a completion behind a prompt has.
    assert tokenizer.decode(ids[:-1]) == "the answer 数🙂\n"
    assert own.own(2) == b"</s>"
    assert own.own(999) == own.shown(-1) == b""


@given(st.text())
def test_bytes_of_byte_level_tokens_join_to_the_text(text: str) -> None:
    plain = text.replace("<", "")
    assert b"".join(BYTES.shown(token) for token in demo_tokens(plain)) == plain.encode()
