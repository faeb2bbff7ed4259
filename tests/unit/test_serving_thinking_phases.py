"""Thinking limits by phases, on an engine that says what was written down for it, one letter a token."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from tokensqueeze.engines.base import ThinkingLimit, TokenLogprob
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.generation import Piece, ServedRequest
from tokensqueeze.serving.thinking_phases import complete_in_phases, joined, travelling_together
from tokensqueeze.traces.thinking_budget import cut_at_budget
from tokensqueeze.traces.token_texts import TokenTexts

EOS = ord("$")
PROMPT = tuple(map(ord, "Q?"))


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, token_ids: Sequence[int], **_: bool) -> str:
        return "".join(map(chr, token_ids))

    def __call__(self, text: str, **_: bool) -> "Letters":
        self.input_ids = list(map(ord, text))
        return self


@dataclass
class Engine:
    """Says `natural` behind the prompt; where thinking was closed before it ended by itself, `answer` behind the close."""

    natural: str
    answer: str = "6$"
    close: str = "|</t>"
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """Completion so far, max_tokens and seed of every phase."""
    closed_phases: int = 0

    async def complete(
        self, request: ServedRequest, prompt_token_ids: list[int], max_tokens: int, seed: int
    ) -> AsyncGenerator[Piece, None]:
        so_far = "".join(map(chr, prompt_token_ids))[len(PROMPT) :]
        self.asked.append((so_far, max_tokens, seed))
        _, closed, answered = so_far.partition(self.close)
        rest = self.answer[len(answered) :] if closed else self.natural[len(so_far) :]
        logprobs = None if request.top_logprobs is None else (TokenLogprob(-1.0),)
        try:
            for index, letter in enumerate(rest[:max_tokens]):
                ended = "stop" if letter == "$" else "length" if index + 1 == max_tokens else None
                yield Piece((ord(letter),), logprobs, ended)
        finally:
            self.closed_phases += 1

    async def logprobs_of_last(self, request: ServedRequest, token_ids: list[int], count: int) -> tuple[TokenLogprob, ...]:
        assert self.asked[-1][0] in "".join(map(chr, token_ids))
        return (TokenLogprob(-2.0),) * count


def completed(engine: Engine, *, budget: int | None, max_tokens: int = 100, context: int = 1000, **others: object) -> Piece:
    """Return the whole completion as one piece."""
    limit = None if budget is None else ThinkingLimit(budget, "</t>", tuple(map(ord, engine.close)))
    request = replace(
        ServedRequest("r", PROMPT, max_tokens, temperature=1.0, top_p=1.0, seed=7, thinking=limit),
        **others,  # type: ignore[arg-type]
    )

    async def gather() -> list[Piece]:
        texts = TokenTexts(Letters(), frozenset({EOS}))  # type: ignore[arg-type]
        return [piece async for piece in complete_in_phases(engine, request, texts, context)]

    pieces = asyncio.run(gather())
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = joined(whole, piece)
    return whole


def said(piece: Piece) -> str:
    return "".join(map(chr, piece.token_ids))


@pytest.mark.parametrize("budget", range(12))
def test_what_stays_is_what_cut_at_budget_keeps_of_the_whole_completion(budget: int):
    natural = "abcde</t>5$"
    kept = cut_at_budget([*natural[:-1], ""], "</t>", budget)
    piece = completed(Engine(natural), budget=budget)
    assert said(piece) == (natural if kept is None else f"{natural[:kept]}|</t>6$")
    assert (piece.thinking_closed, piece.finish_reason) == (kept is not None, "stop")


def test_a_model_that_thinks_nothing_is_inside_a_budget_of_nothing():
    piece = completed(Engine("</t>5$"), budget=0)
    assert (said(piece), piece.thinking_closed) == ("</t>5$", False)


def test_a_completion_inside_its_budget_is_asked_for_once():
    engine = Engine("abc</t>5$")
    assert said(completed(engine, budget=50)) == "abc</t>5$"
    assert len(engine.asked) == 1


def test_an_answer_longer_than_the_thinking_left_is_gone_on_with():
    engine = Engine("ab</t>a long answer$")
    assert said(completed(engine, budget=6)) == engine.natural
    assert [(so_far, most) for so_far, most, _ in engine.asked] == [("", 10), ("ab</t>a lo", 90)]


def test_no_limit_is_one_phase_with_the_requests_own_seed():
    engine = Engine("abc</t>5$")
    assert said(completed(engine, budget=None)) == "abc</t>5$"
    assert engine.asked == [("", 100, 7)]


def test_a_second_phase_draws_other_numbers_and_the_same_ones_again_when_asked_again():
    first, second = Engine("abcde</t>5$"), Engine("abcde</t>5$")
    completed(first, budget=3)
    completed(second, budget=3)
    assert first.asked == second.asked
    seeds = [seed for _, _, seed in first.asked]
    assert seeds[0] == 7 != seeds[1] and 0 <= seeds[1] < 2**63


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_no_completion_is_longer_than_max_tokens(max_tokens: int):
    whole = "abc|</t>6$"  # thinking of five tokens, closed at three
    piece = completed(Engine("abcde</t>5$"), budget=3, max_tokens=max_tokens)
    # One token of thinking is no more than the budget where the completion ends there.
    expected = whole[:max_tokens]
    assert said(piece) == expected
    assert piece.finish_reason == ("stop" if expected.endswith("$") else "length")
    assert piece.thinking_closed == (max_tokens > 3)


def test_the_end_of_the_context_ends_the_completion():
    piece = completed(Engine("abcde</t>5$"), budget=3, context=len(PROMPT) + 9)
    assert (said(piece), piece.finish_reason) == ("abc|</t>6", "length")


# What closes thinking travels in one piece: no stream ends within it.
@pytest.mark.parametrize("sent", [1, 2, 3, 8, 9])
def test_a_completion_is_gone_on_with_where_another_engine_stopped(sent: int):
    whole = "abc|</t>6$"
    piece = completed(Engine("abcde</t>5$"), budget=3, generated_token_ids=tuple(map(ord, whole[:sent])))
    assert whole[:sent] + said(piece) == whole


def test_forced_tokens_have_the_logprobs_the_model_gives_them():
    piece = completed(Engine("abcde</t>5$"), budget=3, top_logprobs=0)
    assert piece.logprobs is not None
    assert [entry.logprob for entry in piece.logprobs] == [-1.0] * 3 + [-2.0] * 5 + [-1.0] * 2


def test_every_phase_is_closed_when_the_client_goes_away():
    engine = Engine("abcdefgh</t>5$")

    async def leave() -> None:
        request = ServedRequest("r", PROMPT, 100, 1.0, 1.0, 7, thinking=ThinkingLimit(20, "</t>", (1,)))
        texts = TokenTexts(Letters(), frozenset({EOS}))  # type: ignore[arg-type]
        pieces = travelling_together(complete_in_phases(engine, request, texts, 1000), 0.0)
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(leave())
    assert engine.closed_phases == 1


def test_the_first_and_the_last_piece_are_not_kept_back_and_those_between_travel_together():
    async def source() -> AsyncGenerator[Piece, None]:
        for token in range(9):
            yield Piece((token,))
        yield Piece((9,), finish_reason="stop")

    async def gather() -> list[Piece]:
        return [piece async for piece in travelling_together(source(), interval_seconds=60)]

    assert [piece.token_ids for piece in asyncio.run(gather())] == [(0,), tuple(range(1, 10))]


def test_a_stream_that_stops_without_a_reason_is_an_error():
    async def source() -> AsyncGenerator[Piece, None]:
        yield Piece((1,))

    async def gather() -> list[Piece]:
        return [piece async for piece in travelling_together(source(), interval_seconds=0)]

    with pytest.raises(EngineError, match="in the middle"):
        asyncio.run(gather())
