"""Where a thinking budget cuts a completion."""

import pytest

from tokensqueeze.traces.thinking_budget import cut_at_budget


@pytest.mark.parametrize(
    ("token_texts", "budget", "kept"),
    [
        # Five tokens of thinking, then the tag, then the answer.
        (["a", "b", "c", "d", "e", "</think>", "5", ""], 4, 4),
        (["a", "b", "c", "d", "e", "</think>", "5", ""], 5, None),
        (["a", "b", "c", "d", "e", "</think>", "5", ""], 0, 0),
        # The tag is no thinking, however many tokens it has.
        (["a", "b", "</", "think", ">", "5"], 2, None),
        (["a", "b", "</", "think", ">", "5"], 1, 1),
        # A token that the tag begins in belongs to the tag.
        (["a", "b\n</", "think>", "5"], 1, None),
        # Thought twice: the last end counts.
        (["a", "</think>", "b", "c", "</think>", "5"], 3, 3),
        # Never ends its thinking: all of it is thinking, though nothing is left to cut at a budget as long as that.
        (["a", "b", "c"], 2, 2),
        (["a", "b", "c"], 3, None),
        # Thinks nothing at all.
        (["</think>", "5"], 0, None),
        ([], 0, None),
    ],
)
def test_thinking_is_cut_at_the_budget_and_only_where_it_takes_more(token_texts: list[str], budget: int, kept: int | None):
    assert cut_at_budget(token_texts, "</think>", budget) == kept
