"""Splitting a completion into steps, and putting it together again."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tokensqueeze.traces.anatomy import Span, replace_spans, step_spans, thinking_tokens

END = "</think>"


def spelled(token_texts: list[str]) -> list[str]:
    return ["".join(token_texts[span.start : span.end]) for span in step_spans(token_texts, END)]


def test_steps_are_the_paragraphs_of_the_thinking_block() -> None:
    tokens = ["One", ".", "\n\n", "Two", " and", " more", ".", "\n\n", "Three", ".", "\n", END, "\n\n", "Answer", "."]
    assert spelled(tokens) == ["One.", "Two and more.", "Three."]
    assert thinking_tokens(tokens, END) == 12


def test_a_token_that_holds_the_blank_line_too_belongs_to_its_step() -> None:
    assert spelled(["One", ".\n\n", "Two", ".\n", END, "x"]) == ["One.\n\n", "Two.\n"]


def test_a_tag_spread_over_several_tokens_is_found() -> None:
    tokens = ["One", ".\n", "</", "think", ">\n\n", "Answer"]
    assert spelled(tokens) == ["One.\n"]
    assert thinking_tokens(tokens, END) == 5


def test_a_token_that_holds_a_step_and_the_beginning_of_the_tag_is_not_to_be_replaced() -> None:
    assert spelled(["One", ".", "\n\n", "Two", ".</", "think", ">"]) == ["One."]


def test_a_blank_line_behind_a_step_is_its_own_where_another_step_has_it_in_its_last_token() -> None:
    tokens = ["One", ".", "\n\n", "Two", "\n\n", "Three", "\n", END]
    assert spelled(tokens) == ["One.", "Two", "Three"]
    tokens[1:3] = [".\n\n"]
    assert spelled(tokens) == ["One.\n\n", "Two\n\n", "Three\n"]


def test_a_token_that_holds_a_blank_line_and_a_steps_beginning_stays() -> None:
    assert spelled(["One", ".", "\n\nThen", " two", ".", END]) == ["One.", " two."]
    # Two steps that can't be told apart by tokens are one.
    assert spelled(["One", ".\n\nThen", " two", ".", END]) == ["One.\n\nThen two."]


def test_runs_of_blank_lines_make_no_empty_steps() -> None:
    assert spelled(["\n\n", "One", "\n\n", "\n\n", " \n", "Two", "\n\n", END]) == ["One", "Two"]


def test_an_unclosed_thinking_block_keeps_its_last_paragraph_as_the_answer() -> None:
    assert spelled(["One", "\n\n", "Two", "\n\n", "So \\boxed{2}."]) == ["One", "Two"]
    assert thinking_tokens(["One", "\n\n", "Two"], END) == 3


def test_an_empty_completion_has_no_steps() -> None:
    assert spelled([]) == []
    assert spelled([END]) == []


def test_replaced_spans_leave_the_rest_as_it_was() -> None:
    assert replace_spans([1, 2, 3, 4, 5, 6], {Span(4, 5): [9, 9], Span(1, 3): []}) == [1, 4, 9, 9, 6]


@given(
    st.lists(
        st.sampled_from(["a", "b. ", "\n", "\n\n", ".\n\n", "\n\nb", ".\n\nb", " ", END, "</", ".</", "think>", "é"]),
        max_size=40,
    )
)
def test_splitting_and_joining_are_exact_inverses(token_texts: list[str]) -> None:
    spans = step_spans(token_texts, END)
    ids = list(range(len(token_texts)))
    assert replace_spans(ids, {span: ids[span.start : span.end] for span in spans}) == ids
    assert all(before.end <= after.start for before, after in itertools.pairwise(spans))
    assert all("".join(token_texts[span.start : span.end]).strip() for span in spans)
    closing = "".join(token_texts).rfind(END)
    if closing >= 0 and spans:
        assert len("".join(token_texts[: spans[-1].end])) <= closing
