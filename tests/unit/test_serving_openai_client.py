"""OpenAI's own client against the real app over a real socket: chats, streams, choices, and every error it knows."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.unit.scripted_source import Step, demo_tokens, pieces, says
from tests.unit.served_app import EXPIRED_KEY, KEY, Served, served, until
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.generation import TokenLogprob

THOUGHT, ANSWER = "Let me add.", "The answer is 5."
LONGER = "Two and three, three and two.\n</think>\n\nThe answer is still 5."
QUESTION: Any = [{"role": "user", "content": "What is 2 + 3?"}]
TOKENS = demo_tokens("Let me add.\n</think>\n\nThe answer is 5.<|im_end|>")


def with_logprobs() -> list[Step]:
    """The usual answer; the i-th token has the probability 1 / (i + 1), and the end of the sequence half of it."""
    end = TOKENS[-1]
    logprobs = [
        TokenLogprob(-math.log(i + 1), ((token, -math.log(i + 1)), (end, -math.log(2 * i + 2))))
        for i, token in enumerate(TOKENS)
    ]
    return pieces(TOKENS, logprobs=logprobs)


SCRIPTS = {
    "demo": [says()],
    "choices": [says(), says(LONGER)],
    "logprobs": [with_logprobs()],
    "slow": [says(pause=0.03)],
    "silent": [[60.0]],
    "broken": [[EngineError("no engine")]],
    "breaking": [[*says()[:4], EngineError("no engine")]],
    "flaky": [[EngineError("no engine")], says()],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = {"max_concurrency": 4, "max_body_bytes": 50_000}
    with served(SCRIPTS, tmp_path_factory.mktemp("log") / "access.jsonl", limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=5) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_stays_behind(server: Served) -> Iterator[None]:
    yield
    until(lambda: server.app.state.in_flight() == 0)


def test_a_chat_has_its_answer_its_reasoning_and_its_usage(client: OpenAI):
    answer = client.chat.completions.create(model="demo", messages=QUESTION)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
    assert choice.message.reasoning_content == THOUGHT  # type: ignore[attr-defined]
    assert answer.usage is not None and answer.usage.completion_tokens == len(TOKENS)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(TOKENS)
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert details.reasoning_tokens == len(demo_tokens("Let me add.\n</think>"))
    assert answer._request_id is not None


def test_a_stream_is_the_same_answer_in_pieces(client: OpenAI):
    stream = client.chat.completions.create(
        model="demo", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == THOUGHT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == len(TOKENS)
    assert len({chunk.id for chunk in chunks}) == 1


def test_pieces_arrive_while_the_rest_is_still_to_come(client: OpenAI, server: Served):
    with client.chat.completions.create(model="slow", messages=QUESTION, stream=True) as stream:
        next(iter(stream))
        assert server.sources["slow"].open
        assert len(list(stream)) > 3


def test_the_clients_own_stream_helper_gathers_a_chat(client: OpenAI):
    with client.chat.completions.stream(model="demo", messages=QUESTION) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER


def test_several_choices_come_with_their_indices(client: OpenAI):
    answer = client.chat.completions.create(model="choices", messages=QUESTION, n=2)
    assert {choice.index: choice.message.content for choice in answer.choices} == {0: ANSWER, 1: "The answer is still 5."}
    said = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model="choices", messages=QUESTION, n=2, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == {0: ANSWER, 1: "The answer is still 5."}


def test_a_stop_text_ends_the_answer_before_itself(client: OpenAI):
    answer = client.chat.completions.create(model="demo", messages=QUESTION, stop=[" is", "never"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("The answer", "stop")


def test_max_tokens_cuts_and_says_so(client: OpenAI):
    answer = client.chat.completions.create(model="demo", messages=QUESTION, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 3


def test_sampling_reaches_the_engine(client: OpenAI, server: Served):
    client.chat.completions.create(model="demo", messages=QUESTION, temperature=0.25, top_p=0.5, seed=7, max_tokens=99)
    asked = server.sources["demo"].requests[-1]
    assert (asked.temperature, asked.top_p, asked.seed, asked.max_tokens) == (0.25, 0.5, 7, 99)


def test_a_thinking_budget_reaches_the_engine_by_number_or_by_name(client: OpenAI, server: Served):
    client.chat.completions.create(model="demo", messages=QUESTION, extra_body={"thinking_budget": 17})
    by_number = server.sources["demo"].requests[-1].thinking
    client.chat.completions.create(model="demo", messages=QUESTION, reasoning_effort="low")
    by_name = server.sources["demo"].requests[-1].thinking
    assert by_number is not None and by_number.budget == 17
    assert by_name is not None and by_name.budget == 1024 // 32  # the demo's context, and the share that low means


def test_logprobs_belong_to_the_answers_tokens(client: OpenAI):
    answer = client.chat.completions.create(model="logprobs", messages=QUESTION, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first = TOKENS.index(demo_tokens("\n\nThe")[0], len(demo_tokens("Let me add.\n</think>")))
    assert [entry.logprob for entry in logprobs.content] == pytest.approx([-math.log(i + 1) for i in range(first, len(TOKENS))])
    assert "".join(entry.token for entry in logprobs.content).strip().startswith(ANSWER)
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)


def test_a_text_is_continued_whole_and_in_pieces(client: OpenAI):
    whole = client.completions.create(model="demo", prompt="2 + 3 =", max_tokens=200)
    assert whole.choices[0].text.endswith(ANSWER)
    stream = client.completions.create(model="demo", prompt="2 + 3 =", max_tokens=200, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole.choices[0].text


def test_several_prompts_are_several_choices(client: OpenAI, server: Served):
    answer = client.completions.create(model="demo", prompt=[[1, 2, 3], [4, 5]], max_tokens=200)
    assert [choice.index for choice in answer.choices] == [0, 1]
    prompts = {request.prompt_token_ids for request in server.sources["demo"].requests[-2:]}
    assert prompts == {(1, 2, 3), (4, 5)}


def test_models_are_listed_and_retrieved(client: OpenAI):
    assert [model.id for model in client.models.list()] == list(SCRIPTS)
    assert client.models.retrieve("demo").id == "demo"


def test_the_asynchronous_client_asks_many_at_once(server: Served):
    async def ask() -> tuple[list[str | None], str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=5) as client:
            one = [client.chat.completions.create(model="slow", messages=QUESTION) for _ in range(3)]
            answers = [answer.choices[0].message.content for answer in await asyncio.gather(*one)]
            stream = await client.chat.completions.create(model="demo", messages=QUESTION, stream=True)
            said = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            return answers, "".join(said)

    assert asyncio.run(ask()) == ([ANSWER] * 3, ANSWER)


@pytest.mark.parametrize(("key", "code"), [("wrong", "invalid_api_key"), (EXPIRED_KEY, "expired_api_key")])
def test_a_wrong_key_is_an_authentication_error(server: Served, key: str, code: str):
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.chat.completions.create(model="demo", messages=QUESTION)
    assert raised.value.code == code


def test_an_unknown_model_or_route_is_a_not_found_error(client: OpenAI):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="demo", input="x")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a long one " * 2000}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "add"}}]}, "tools"),
        ({"n": 5}, "n"),
        ({"extra_body": {"thinking_budget": "all"}}, "thinking_budget"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_wrong_is_a_bad_request_error(client: OpenAI, fields: dict[str, Any], param: str, stream: bool):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{"model": "demo", "messages": QUESTION, "stream": stream, **fields})
    assert (raised.value.param, raised.value.type) == (param, "invalid_request_error")


def test_a_body_that_is_too_long_is_a_status_error(client: OpenAI):
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x" * 60_000}])
    assert raised.value.status_code == 413


def test_too_much_under_way_is_a_rate_limit_error_that_says_when_to_come_again(client: OpenAI):
    with client.chat.completions.create(model="slow", messages=QUESTION, n=4, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="demo", messages=QUESTION)
        assert raised.value.code == "concurrency_limit"
        assert raised.value.response.headers["retry-after"] == "1"


def test_a_client_that_loses_patience_frees_its_place(client: OpenAI, server: Served):
    closed = len(server.sources["silent"].closed)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="silent", messages=QUESTION, timeout=0.2)
    asyncio.run(asyncio.wait_for(_until_closed(server, closed + 1), timeout=1))


async def _until_closed(server: Served, count: int) -> None:
    while len(server.sources["silent"].closed) < count:
        await asyncio.sleep(0.01)


def test_an_engine_that_is_gone_is_an_internal_server_error(client: OpenAI):
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(model="broken", messages=QUESTION, stream=stream)
        assert (raised.value.status_code, raised.value.code) == (503, "engine_unavailable")


def test_an_engine_that_goes_in_a_stream_is_an_error_behind_what_came(client: OpenAI):
    said: list[str] = []
    with pytest.raises(openai.APIError) as raised:
        for chunk in client.chat.completions.create(model="breaking", messages=QUESTION, stream=True):
            said.append(getattr(chunk.choices[0].delta, "reasoning_content", None) or "")
    assert raised.value.code == "engine_unavailable"
    assert "".join(said) and THOUGHT.startswith("".join(said))


def test_the_client_comes_again_by_itself_where_an_engine_was_gone(server: Served):
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=1, timeout=5) as client:
        answer = client.chat.completions.create(model="flaky", messages=QUESTION)
    assert answer.choices[0].message.content == ANSWER
    assert len(server.sources["flaky"].requests) == 2
