"""From a client's request to its answer, over engines that play scripts: what is asked of them, and what comes back."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import pytest

from tests.unit.scripted_source import Script, ScriptedSource, Step, demo_tokens, pieces, says
from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.answering import Answering, choice_seed
from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.generation import Piece, TokenLogprob
from tokensqueeze.serving.hosted_model import CardLengths, HostedModel, ModelDefaults
from tokensqueeze.serving.prepared_answer import PreparedAnswer
from tokensqueeze.serving.protocol import ChatCompletionRequest, CompletionRequest
from tokensqueeze.serving.request_record import RequestRecord
from tokensqueeze.serving.responses import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from tokensqueeze.serving.settings import ServedModel, ServeSettings, check_serve_settings

Body = ChatCompletionRequest | CompletionRequest
Result = TypeVar("Result")
THOUGHT, ANSWER = "Let me add.\n</think>", "\n\nThe answer is 5.<|im_end|>"


@cache
def demo() -> HostedModel:
    return HostedModel.load("tiny", ServedModel(), ServeSettings(models=[ServedModel()]))


@dataclass
class Asked:
    """One request, prepared."""

    answer: PreparedAnswer
    record: RequestRecord
    source: ScriptedSource
    first_tokens: int = 0

    def whole(self) -> Any:
        return run(self.answer.whole(self.count_first))

    def chunks(self) -> list[Any]:
        async def gathered() -> list[Any]:
            return [chunk async for chunk in self.answer.chunks(self.count_first)]

        return run(gathered())

    def count_first(self) -> None:
        self.first_tokens += 1


def run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(work, 10))


def answering(source: ScriptedSource, model: HostedModel | None = None, **settings: Any) -> Answering:
    return Answering({"tiny": (model or demo(), source)}, check_serve_settings({"models": [{"name": "tiny"}], **settings}))


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate(
        {"model": "tiny", "messages": [{"role": "user", "content": "2 + 3?"}], "seed": 7, **fields}
    )


def text(prompt: Any = "2 + 3", **fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "tiny", "prompt": prompt, "max_tokens": 99, **fields})


def ask(body: Body, *scripts: Script, model: HostedModel | None = None, **settings: Any) -> Asked:
    source = ScriptedSource(*(scripts or (says(),)))
    record = RequestRecord("r1", "/v1/chat/completions")
    return Asked(answering(source, model, **settings).prepare(body, record), record, source)


def refused(body: Body, model: HostedModel | None = None, **settings: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(body, model=model, **settings)
    return caught.value


def test_a_chat_has_its_reasoning_apart_and_its_tokens_counted() -> None:
    asked = ask(chat())
    whole = asked.whole()
    assert isinstance(whole, ChatCompletion)
    (choice,) = whole.choices
    assert (choice.message.reasoning_content, choice.message.content) == ("Let me add.", "The answer is 5.")
    assert (choice.finish_reason, choice.thinking_closed_at_budget) == ("stop", False)
    prompt = load_tokenizer(demo_model_dir()).apply_chat_template(
        [{"role": "user", "content": "2 + 3?"}], add_generation_prompt=True, return_dict=False
    )
    assert list(asked.source.requests[0].prompt_token_ids) == prompt
    reasoning, answer = len(demo_tokens(THOUGHT)), len(demo_tokens(ANSWER))
    assert whole.usage.model_dump() == {
        "prompt_tokens": len(prompt),
        "completion_tokens": reasoning + answer,
        "total_tokens": len(prompt) + reasoning + answer,
        "completion_tokens_details": {"reasoning_tokens": reasoning, "answer_tokens": answer},
    }
    # Made without validation, it is what the description says all the same.
    assert ChatCompletion.model_validate_json(whole.model_dump_json(exclude_none=True)) == whole


def test_the_record_holds_what_the_log_and_the_metrics_need() -> None:
    asked = ask(chat(n=2, stream=True), says("a</think>5"), says("ab</think>5"))
    asked.chunks()
    record = asked.record
    assert (record.model, record.stream, record.choices) == ("tiny", True, 2)
    assert record.prompt_tokens == len(asked.source.requests[0].prompt_token_ids)
    lengths = [len(demo_tokens(f"{thought}</think>5<|im_end|>")) for thought in ("a", "ab")]
    assert sorted(record.completion_lengths) == sorted(lengths)
    assert record.reasoning_tokens + record.answer_tokens == sum(lengths)
    assert record.answer_tokens == 4
    assert record.finish_reasons == ["stop", "stop"]
    # Each choice's first piece has no piece before it.
    assert sum(tokens for _, tokens in record.inter_token_seconds) == sum(lengths) - 2
    assert record.first_token_seconds is not None and 0 < record.first_token_seconds <= record.elapsed()
    assert (record.prompt, record.answer, asked.first_tokens) == (None, None, 2)


def test_prompts_and_answers_are_recorded_only_if_asked_for() -> None:
    asked = ask(chat(n=2), says("a</think>5"), says("a</think>6"), log_prompts=True)
    asked.whole()
    assert asked.record.prompt == demo().chat_prompt(chat().messages).text
    assert asked.record.answer in ("5\n\n6", "6\n\n5")


def test_chunks_begin_with_the_role_and_end_with_the_reason() -> None:
    chunks = ask(chat(stream=True)).chunks()
    assert chunks[0].choices[0].delta.model_dump(exclude_none=True) == {"role": "assistant", "content": ""}
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].choices[0].thinking_closed_at_budget is False
    assert {chunk.id for chunk in chunks} == {"chatcmpl-r1"} and all(chunk.usage is None for chunk in chunks)
    for chunk in chunks:
        assert ChatCompletionChunk.model_validate_json(chunk.model_dump_json(exclude_none=True)) == chunk


def test_the_usage_comes_last_or_all_along() -> None:
    whole = ask(chat()).whole()
    chunks = ask(chat(stream=True, stream_options={"include_usage": True})).chunks()
    assert [chunk.usage for chunk in chunks] == [None] * (len(chunks) - 1) + [whole.usage]
    assert chunks[-1].choices == []
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk.usage.completion_tokens for chunk in ask(chat(stream=True, stream_options=options)).chunks()[1:]]
    assert counts == sorted(counts) and counts[-1] == whole.usage.completion_tokens and counts[0] < counts[-1]


def logprobs_of(token_ids: list[int]) -> list[TokenLogprob]:
    return [TokenLogprob(-0.5 - i, ((token, -0.5 - i), (3, -2.0 - i))) for i, token in enumerate(token_ids)]


def with_logprobs(text: str, size: int = 1) -> list[Step]:
    ids = demo_tokens(text)
    return pieces(ids, size=size, logprobs=logprobs_of(ids))


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("stop", [None, "answer", "is 5"])
def test_chunks_put_together_are_the_whole_answer(size: int, stop: str | None) -> None:
    script = with_logprobs(THOUGHT + "\n\nThe 🙂 answer is 5.<|im_end|>", size)
    body = {"stop": stop, "logprobs": True, "top_logprobs": 2}
    (whole,) = ask(chat(**body), script).whole().choices
    chunks = [chunk.choices[0] for chunk in ask(chat(**body, stream=True), script).chunks()]
    assert "".join(chunk.delta.reasoning_content or "" for chunk in chunks) == whole.message.reasoning_content
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    parts = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    assert [entry for part in parts for entry in part.content] == whole.logprobs.content
    assert [entry for part in parts for entry in part.reasoning_content] == whole.logprobs.reasoning_content

    (whole,) = ask(text(stop=stop, logprobs=2), script).whole().choices
    chunks = [chunk.choices[0] for chunk in ask(text(stop=stop, logprobs=2, stream=True), script).chunks()]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    parts = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for part in parts for value in getattr(part, name)] == getattr(whole.logprobs, name)


def test_a_chats_logprobs_stand_beside_each_counted_token() -> None:
    whole = ask(chat(logprobs=True, top_logprobs=2), with_logprobs("a</think>5🙂<|im_end|>")).whole()
    logprobs, details = whole.choices[0].logprobs, whole.usage.completion_tokens_details
    assert [entry.token for entry in logprobs.reasoning_content] == ["a", "</think>"]
    assert [entry.token for entry in logprobs.content] == ["5", "\\xf0", "\\x9f", "\\x99", "\\x82", "<|im_end|>"]
    assert bytes(byte for entry in logprobs.content[:5] for byte in entry.bytes).decode() == "5🙂"
    assert (details.reasoning_tokens, details.answer_tokens) == (2, 6)
    third = logprobs.content[0]
    assert third.logprob == -2.5
    assert [(top.token, top.logprob, top.bytes) for top in third.top_logprobs] == [
        ("5", -2.5, list(b"5")),
        ("<think>", -4.0, list(b"<think>")),
    ]


def test_a_text_completions_logprobs_have_places_in_the_text() -> None:
    asked = ask(text(logprobs=1), with_logprobs("a🙂<|im_end|>"))
    logprobs = asked.whole().choices[0].logprobs
    assert asked.source.requests[0].top_logprobs == 1
    assert logprobs.tokens == ["a", "bytes:\\xf0", "bytes:\\x9f", "bytes:\\x99", "bytes:\\x82", "<|im_end|>"]
    assert logprobs.text_offset == [0, 1, 1, 1, 1, 2]
    assert logprobs.top_logprobs[0] == {"a": -0.5, "<think>": -2.0}
    assert logprobs.token_logprobs == [-0.5 - i for i in range(6)]


def test_a_drawn_token_that_is_not_among_the_likeliest_is_told_and_infinity_is_not() -> None:
    ids = demo_tokens("a")
    script = pieces(ids, logprobs=[TokenLogprob(-math.inf, ((3, -0.1), (4, math.nan)))], finish_reason="length")
    logprobs = ask(text(logprobs=2), script).whole().choices[0].logprobs
    assert logprobs.top_logprobs == [{"<think>": -0.1, "</think>": -9999.0, "a": -9999.0}]


@pytest.mark.parametrize(
    ("body", "asked_for"),
    [
        (chat(), None),
        (chat(logprobs=True), 0),
        (chat(logprobs=True, top_logprobs=20), 20),
        (chat(logprobs=False), None),
        (text(), None),
        (text(logprobs=0), 0),
    ],
)
def test_logprobs_are_asked_of_the_engine_as_the_request_has_them(body: Body, asked_for: int | None) -> None:
    asked = ask(body)
    asked.whole()
    assert asked.source.requests[0].top_logprobs == asked_for


def test_several_prompts_and_choices_are_numbered_prompt_by_prompt() -> None:
    asked = ask(text(["2", "3"], n=2, seed=5), *[says(f"{i}") for i in range(4)])
    whole = asked.whole()
    assert isinstance(whole, Completion)
    assert [(choice.index, choice.text) for choice in whole.choices] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert [list(request.prompt_token_ids) for request in asked.source.requests] == [
        demo_tokens(p) for p in ("2", "2", "3", "3")
    ]
    # Each prompt is read once, however many completions follow it.
    assert whole.usage.prompt_tokens == 2
    assert len({request.request_id for request in asked.source.requests}) == 4
    assert len({request.seed for request in asked.source.requests}) == 4


def test_token_prompts_go_to_the_engine_as_they_are() -> None:
    asked = ask(text([[92, 93], [94]], n=1))
    asked.whole()
    assert [request.prompt_token_ids for request in asked.source.requests] == [(92, 93), (94,)]
    assert ask(text([92, 93])).answer.choices == 1


def test_a_text_completion_keeps_the_tags_and_counts_the_thinking() -> None:
    whole = ask(text("2 + 3"), says()).whole()
    assert whole.choices[0].text == THOUGHT + "\n\nThe answer is 5."
    assert whole.usage.completion_tokens_details.reasoning_tokens == len(demo_tokens(THOUGHT))
    whole = ask(text("2 + 3</think>"), says("It is 5.")).whole()
    assert whole.usage.completion_tokens_details.reasoning_tokens == 0
    for chunk in ask(text(stream=True)).chunks():
        assert CompletionChunk.model_validate_json(chunk.model_dump_json(exclude_none=True)) == chunk


def test_the_first_choice_has_the_requests_seed_and_others_their_own() -> None:
    def seeds(body: Body) -> list[int]:
        asked = ask(body)
        asked.whole()
        return [request.seed for request in asked.source.requests]

    assert seeds(chat(seed=7)) == [7]
    assert seeds(chat(seed=7, n=3))[0] == 7 and seeds(chat(seed=7, n=3)) == seeds(chat(seed=7, n=3))
    assert seeds(chat(seed=-1)) == [2**63 - 1]
    assert seeds(chat(seed=None)) != seeds(chat(seed=None))
    many = {choice_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(many) == 2500 and all(0 <= seed < 2**63 for seed in many)


def test_sampling_is_as_asked_or_as_the_model_has_it() -> None:
    def sampling(body: Body, model: HostedModel) -> tuple[float, float]:
        asked = ask(body, model=model)
        asked.whole()
        return asked.source.requests[0].temperature, asked.source.requests[0].top_p

    own = replace(demo(), defaults=ModelDefaults(temperature=0.6, top_p=0.95))
    assert sampling(chat(), demo()) == (1.0, 1.0)
    assert sampling(chat(), own) == (0.6, 0.95)
    assert sampling(chat(temperature=0, top_p=0.5), own) == (0, 0.5)


def max_tokens(body: Body, **settings: Any) -> int:
    asked = ask(body, **settings)
    asked.whole()
    return asked.source.requests[0].max_tokens


def test_max_tokens_is_what_was_asked_and_what_there_is_room_for() -> None:
    room = 1024 - len(demo().chat_prompt(chat().messages).token_ids)
    assert max_tokens(chat()) == max_tokens(chat(max_tokens=10**6)) == room
    assert max_tokens(chat(max_tokens=50)) == max_tokens(chat(max_completion_tokens=50, max_tokens=60)) == 50
    assert max_tokens(chat(), limits={"max_completion_tokens": 40}) == 40
    # OpenAI's default of this route.
    assert max_tokens(text(max_tokens=None)) == 16
    assert max_tokens(text(max_tokens=None), limits={"max_completion_tokens": 9}) == 9
    assert max_tokens(text([92] * 1023)) == 1


def test_an_answer_that_is_cut_says_so() -> None:
    (choice,) = ask(chat(max_tokens=3)).whole().choices
    assert (choice.finish_reason, choice.message.content) == ("length", "")


@pytest.mark.parametrize(
    ("body", "settings", "budget"),
    [
        (chat(), {}, None),
        (chat(thinking_budget=0), {}, 0),
        (chat(thinking_budget=77), {"thinking": {"default_budget": 5}}, 77),
        (chat(), {"thinking": {"default_budget": 5}}, 5),
        (chat(reasoning_effort="low"), {}, 32),
        (chat(reasoning_effort="high"), {"thinking": {"default_budget": 5}}, 512),
        (text(thinking_budget=9), {}, 9),
        # Here the prompt has closed the thinking already.
        (text("2 + 3</think>", thinking_budget=9), {}, None),
    ],
)
def test_the_engine_is_given_the_thinking_budget(body: Body, settings: dict[str, Any], budget: int | None) -> None:
    asked = ask(body, **settings)
    asked.whole()
    limit = asked.source.requests[0].thinking
    assert (None if limit is None else limit.budget) == budget
    if limit is not None:
        assert (limit.think_end, limit.close_token_ids) == ("</think>", tuple(demo_tokens("\n</think>\n\n")))


def test_thinking_that_was_closed_at_its_budget_is_reported() -> None:
    script = [
        Piece(tuple(demo_tokens("Let me"))),
        Piece(tuple(demo_tokens("\n</think>\n\n")), thinking_closed=True),
        Piece(tuple(demo_tokens("5.<|im_end|>")), finish_reason="stop"),
    ]
    asked = ask(chat(thinking_budget=2), script)
    (choice,) = asked.whole().choices
    assert (choice.message.reasoning_content, choice.message.content) == ("Let me", "5.")
    assert choice.thinking_closed_at_budget and asked.record.thinking_closed == 1
    assert ask(chat(thinking_budget=2, stream=True), script).chunks()[-1].choices[0].thinking_closed_at_budget is True


def test_a_model_that_does_not_think_has_an_answer_only() -> None:
    plain = replace(demo(), is_reasoning=False)
    whole = ask(chat(), says("It is 5."), model=plain).whole()
    assert whole.choices[0].message.model_dump(exclude_none=True) == {"role": "assistant", "content": "It is 5."}
    assert whole.usage.completion_tokens_details.reasoning_tokens == 0
    # The server's default budget is for those that think.
    asked = ask(chat(), says("It is 5."), model=plain, thinking={"default_budget": 5})
    asked.whole()
    assert asked.source.requests[0].thinking is None
    for field in ({"thinking_budget": 5}, {"reasoning_effort": "low"}):
        error = refused(chat(**field), model=plain)
        assert (error.status, error.param) == (400, next(iter(field)))
        assert "tiny does not think before it answers" in error.message


def test_a_stop_text_ends_the_answer_and_closes_the_engines_stream() -> None:
    forever = [*says(THOUGHT + " The answer")[:-1], *[Piece(tuple(demo_tokens("a")))] * 50]
    asked = ask(chat(stop=["aaa"]), forever)
    whole = asked.whole()
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("The answer", "stop")
    assert asked.source.closed == ["r1-0"] and not asked.source.open
    assert (
        whole.usage.completion_tokens == sum(asked.record.completion_lengths) == len(demo_tokens(THOUGHT + " The answer")) + 3
    )


def test_a_stop_text_ends_its_own_choice_only() -> None:
    gate = asyncio.Event()

    async def main() -> list[Any]:
        slow: list[Step] = [gate, *says("a</think>late")]
        body = chat(n=2, stream=True, stop="aaa")
        asked = ask(body, [*says("a</think>")[:-1], *[Piece(tuple(demo_tokens("a")))] * 9, 9.0], slow)
        chunks = []
        async for chunk in asked.answer.chunks(asked.count_first):
            chunks.append(chunk)
            if chunk.choices[0].finish_reason and not gate.is_set():
                assert asked.source.open == {"r1-1"}
                gate.set()
        return chunks

    said = {0: "", 1: ""}
    for chunk in run(main()):
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert said == {0: "", 1: "late"}


def test_chunks_of_several_choices_come_as_they_are_made() -> None:
    quick, slow = says("a</think>5", pause=0.0), [0.2, *says("a</think>6")]
    chunks = ask(chat(n=2, stream=True), slow, quick).chunks()
    ended = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason]
    assert ended == [1, 0]
    assert [chunk.choices[0].index for chunk in chunks if chunk.choices[0].delta.role] == [1, 0]


def forever(_request: object) -> list[Step]:
    return [*([Piece(tuple(demo_tokens("a"))), 0.01] * 3), asyncio.Event()]


@pytest.mark.parametrize("n", [1, 3])
def test_closing_the_chunks_closes_every_stream(n: int) -> None:
    async def main() -> Asked:
        asked = ask(chat(n=n, stream=True), forever)
        async with aclosing(asked.answer.chunks(asked.count_first)) as chunks:
            async for _ in chunks:
                if asked.first_tokens == n:
                    break
        return asked

    asked = run(main())
    assert sorted(asked.source.closed) == [f"r1-{i}" for i in range(n)] and not asked.source.open


@pytest.mark.parametrize("n", [1, 3])
def test_cancelling_a_whole_answer_closes_every_stream(n: int) -> None:
    async def main() -> Asked:
        asked = ask(chat(n=n), forever)
        task = asyncio.create_task(asked.answer.whole(asked.count_first))
        while asked.first_tokens < n:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asked

    asked = run(main())
    assert sorted(asked.source.closed) == [f"r1-{i}" for i in range(n)] and not asked.source.open
    # What was generated until then is counted.
    assert asked.record.reasoning_tokens >= n


@pytest.mark.parametrize("ask_it", [Asked.whole, Asked.chunks])
def test_an_engine_that_fails_ends_all_choices(ask_it: Callable[[Asked], Any]) -> None:
    asked = ask(chat(n=2, stream=True), forever, [Piece(tuple(demo_tokens("a"))), EngineError("lost")])
    with pytest.raises(EngineError, match="lost"):
        ask_it(asked)
    assert asked.source.closed == ["r1-0"] and not asked.source.open
    assert asked.record.finish_reasons == []


def test_resumed_streams_are_counted() -> None:
    first, *others, last = says("a</think>5")
    assert isinstance(first, Piece) and isinstance(last, Piece)
    asked = ask(chat(n=2), [first, *others, replace(last, resumed=2)], [replace(first, resumed=1), *others, last])
    asked.whole()
    assert asked.record.resumed == 3


def test_an_engine_that_ends_without_a_reason_has_failed() -> None:
    with pytest.raises(EngineError, match="r1-0: its tokens ended without a finish_reason"):
        ask(chat(), [Piece(tuple(demo_tokens("a")))]).whole()


@pytest.mark.parametrize(
    ("body", "settings", "status", "param", "told"),
    [
        (chat(model="gpt"), {}, 404, "model", "The model 'gpt' is not served here; there are tiny."),
        (chat(n=9), {}, 400, "n", "n is 9: 9 completions; this server gives 8 at most per request"),
        (text(["a"] * 3, n=2), {"limits": {"max_choices": 5}}, 400, "n", "n is 2 for 3 prompts: 6 completions"),
        (text(["a"] * 3), {"limits": {"max_choices": 2}}, 400, "prompt", "3 completions; this server gives 2"),
        (chat(stop=["a"] * 17), {}, 400, "stop", "stop has 17 texts; this server takes 16 at most"),
        (
            chat(max_tokens=11),
            {"limits": {"max_completion_tokens": 10}},
            400,
            "max_tokens",
            "this server gives 10 tokens at most",
        ),
        (chat(max_completion_tokens=11), {"limits": {"max_completion_tokens": 10}}, 400, "max_completion_tokens", "is 11"),
        (text([92] * 1024), {}, 400, "prompt", "1024 tokens; tiny's context of 1024 leaves 1023 for a prompt. Shorten it."),
        (text([92] * 9), {"limits": {"max_prompt_tokens": 8}}, 400, "prompt", "9 tokens; this server's limit leaves 8"),
        (chat(), {"limits": {"max_prompt_tokens": 2}}, 400, "messages", "this server's limit leaves 2 for a prompt"),
        (text(""), {}, 400, "prompt", "empty; a completion needs a token to follow"),
        (text([92, 502]), {}, 400, "prompt", "502 is no token of tiny"),
        (text(["a", ""]), {}, 400, "prompt", "empty"),
        (text(best_of=2), {}, 400, "best_of", "leave best_of out"),
        (chat(stream_options={"include_usage": True}), {}, 400, "stream_options", "set it, or leave the options out"),
        (chat(top_logprobs=1), {}, 400, "top_logprobs", "without logprobs: true"),
        (chat(thinking_budget=1, reasoning_effort="low"), {}, 400, "reasoning_effort", "give one of them"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_before_anything_is_generated(
    body: Body, settings: dict[str, Any], status: int, param: str, told: str
) -> None:
    error = refused(body, **settings)
    assert (error.status, error.param) == (status, param)
    assert told in error.message


def test_the_codes_that_clients_look_for() -> None:
    assert refused(chat(model="gpt")).code == "model_not_found"
    assert refused(text([92] * 1024)).code == "context_length_exceeded"


def test_tokens_of_an_answer_nobody_watches_travel_in_larger_pieces() -> None:
    def interval(body: Body) -> float:
        asked = ask(body, stream_interval_seconds=0.02)
        asked.whole()
        return asked.source.requests[0].interval_seconds

    assert interval(chat(stream=True)) == interval(chat(stop="a")) == 0.02
    assert interval(chat()) == 0.25


def test_the_model_list_names_parts_and_lengths() -> None:
    def listed(names: list[str], compare: list[str]) -> list[tuple[str, str | None]]:
        settings = check_serve_settings({"models": [{"name": name} for name in names], "compare": compare})
        models = {name: (replace(demo(), name=name), ScriptedSource(says())) for name in names}
        return [(entry.id, entry.tokensqueeze.role) for entry in Answering(models, settings).model_list().data]

    assert listed(["one"], []) == [("one", None)]
    assert listed(["one", "two"], []) == [("one", "base"), ("two", "squeezed")]
    assert listed(["one", "two", "three"], ["three", "one"]) == [("one", "squeezed"), ("two", None), ("three", "base")]
    model = replace(demo(), lengths=CardLengths(131.5, 60.0))
    (entry,) = answering(ScriptedSource(says()), model).model_list().data
    assert entry.tokensqueeze.model_dump() == {
        "role": None,
        "context_length": 1024,
        "reasoning": True,
        "base_length": 131.5,
        "squeezed_length": 60.0,
    }
    assert entry.created == int((demo_model_dir() / "config.json").stat().st_mtime)
