"""vLLM behind the server: ray.serve.llm's deployment with the demo model on a CPU, against transformers on the same weights."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from tokensqueeze.engines.base import GenerationRequest, ThinkingLimit, TokenLogprob
from tokensqueeze.engines.checkpoint import demo_model_dir, load_model, load_tokenizer
from tokensqueeze.engines.transformers_engine import TransformersEngine
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.generation import Piece, ServedRequest, TokenSource
from tokensqueeze.serving.settings import ServeSettings, check_serve_settings

pytest.importorskip("vllm", reason="vLLM can't be imported here; `make test-vllm` runs this in an environment that has it")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PLACES = 4
QUESTIONS = [
    "Mia has 12 pens. Mia buys 7 pens. How many pens does Mia have now?",
    "Tom has 40 cards. Tom gives away 15 cards, then loses 3. How many cards are left?",
    "A box holds 6 rows of 9 apples. 4 apples are eaten. How many apples are left?",
]
CLOSE_TEXT = "\n</think>\n\n"


@dataclass
class Served:
    settings: ServeSettings
    source: TokenSource
    handle: object


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    import ray
    from ray import serve
    from ray.serve.config import ProxyLocation

    from tokensqueeze.serving.deployments import engine_app, token_source

    model = {"path": "demo", "engine": {"kind": "vllm", "max_batch_size": PLACES}}
    settings = check_serve_settings({"models": [model], "keys": [], "require_key": False})
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location=ProxyLocation.Disabled)
        handle = serve.run(engine_app("demo", settings.models[0], settings), name="demo", route_prefix=None)
        yield Served(settings, token_source(settings.models[0], handle, settings), handle)
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def transformers_engine() -> TransformersEngine:
    return TransformersEngine.load(demo_model_dir(), dtype=torch.float32, device="cpu", max_batch_size=4)


def test_greedy_tokens_equal_those_of_the_transformers_engine(served: Served, transformers_engine: TransformersEngine):
    requests = [request(question) for question in QUESTIONS]
    expected = transformers_engine.generate([greedy(list(asked.prompt_token_ids), asked.max_tokens) for asked in requests])
    for piece, generation in zip(completed(served, *requests), expected, strict=True):
        assert (list(piece.token_ids), piece.finish_reason) == (generation.token_ids, generation.finish_reason)


def test_an_exceeded_budget_closes_the_thinking_and_the_model_answers(served: Served, transformers_engine: TransformersEngine):
    budget = 5
    asked = request(QUESTIONS[0], thinking=limit(budget))
    (piece,) = completed(served, asked)
    prompt = list(asked.prompt_token_ids)
    (thinking,) = transformers_engine.generate([greedy(prompt, budget)])
    start = [*thinking.token_ids, *tokens(CLOSE_TEXT)]
    (answer,) = transformers_engine.generate([greedy([*prompt, *start], asked.max_tokens - len(start))])
    assert list(piece.token_ids) == [*start, *answer.token_ids]
    assert (piece.thinking_closed, piece.finish_reason) == (True, answer.finish_reason)


def test_a_budget_that_is_not_used_up_changes_nothing(served: Served):
    free, limited = completed(served, request(QUESTIONS[0]), request(QUESTIONS[0], thinking=limit(300)))
    assert limited == free and not free.thinking_closed


def test_logprobs_of_drawn_and_of_forced_tokens_are_those_of_a_forward_pass(served: Served):
    asked = request(QUESTIONS[1], temperature=0.7, seed=3, top_logprobs=3, thinking=limit(8))
    (piece,) = completed(served, asked)
    assert piece.thinking_closed and piece.logprobs is not None and len(piece.logprobs) == len(piece.token_ids)
    ids = torch.tensor([[*asked.prompt_token_ids, *piece.token_ids]])
    with torch.inference_mode():
        logits = load_model(demo_model_dir(), torch.float32)(ids).logits[0]
    expected = torch.log_softmax(logits, -1)[len(asked.prompt_token_ids) - 1 : -1]
    for row, token, given in zip(expected, piece.token_ids, piece.logprobs, strict=True):
        assert given.logprob == pytest.approx(row[token].item(), abs=1e-3)
        assert [value for _, value in given.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
        assert [row[other].item() for other, _ in given.top] == pytest.approx([value for _, value in given.top], abs=1e-3)


def test_a_seed_gives_its_draw_again_and_another_seed_another(served: Served):
    drawn = request(QUESTIONS[1], temperature=1.0, seed=5, thinking=limit(20))
    first, again, other = completed(served, drawn, replace(drawn, request_id="again"), replace(drawn, request_id="b", seed=6))
    assert first.token_ids == again.token_ids != other.token_ids


def test_a_completion_is_gone_on_with_where_it_was(served: Served):
    (whole,) = completed(served, request(QUESTIONS[1]))
    (rest,) = completed(served, request(QUESTIONS[1], generated_token_ids=whole.token_ids[:9]))
    assert whole.token_ids[:9] + rest.token_ids == whole.token_ids


def test_streams_that_are_closed_leave_their_places_in_the_engine(served: Served):
    def babble(index: int) -> AsyncGenerator[Piece, None]:
        asked = request(QUESTIONS[0], request_id=f"long-{index}", max_tokens=900, temperature=2.0, seed=index)
        return served.source.stream(asked)

    async def probe(name: str) -> float:
        begun = time.monotonic()
        async for _ in served.source.stream(request(QUESTIONS[0], request_id=name, max_tokens=1)):
            pass
        return time.monotonic() - begun

    async def behind_others() -> float:
        others = [babble(index) for index in range(PLACES)]
        await asyncio.gather(*map(anext, others))
        waited = await probe("behind")
        await asyncio.gather(*(stream.aclose() for stream in others))
        return waited

    async def behind_closed_ones() -> float:
        others = [babble(index) for index in range(PLACES)]
        await asyncio.gather(*map(anext, others))
        await asyncio.gather(*(stream.aclose() for stream in others))
        return await probe("alone")

    asyncio.run(probe("first"))
    # Behind others it waits until one of them has ended, which takes many steps of the engine; alone it takes one.
    assert asyncio.run(behind_closed_ones()) < asyncio.run(behind_others()) / 2


def test_a_drawn_token_that_is_none_of_the_likeliest_is_not_among_them():
    from tokensqueeze.serving.vllm_source import piece_of

    logprobs = {"token_logprobs": [-3.0], "top_logprobs": [{"token_id:8": -3.0, "token_id:4": -0.5, "token_id:2": -1.5}]}
    event = json.dumps({"choices": [{"token_ids": [8], "logprobs": logprobs, "finish_reason": None}]})
    piece = piece_of(f"data: {event}\n\n", 2)
    assert piece == Piece((8,), (TokenLogprob(-3.0, ((4, -0.5), (2, -1.5))),), None)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ('data: {"error": {"message": "out of blocks", "code": 500}}\n\n', "out of blocks"),
        ('data: {"choices": [{"token_ids": [], "finish_reason": "abort"}]}\n\n', "'abort'"),
        ({"error": "no such model"}, "no such model"),
    ],
)
def test_a_failure_in_vllms_stream_is_an_engine_error(event: object, said: str):
    from tokensqueeze.serving.vllm_source import piece_of

    with pytest.raises(EngineError, match=said):
        piece_of(event, None)


def test_the_openai_client_through_the_whole_server(served: Served):
    import uvicorn
    from openai import OpenAI

    from tokensqueeze.serving.auth import KeyRing
    from tokensqueeze.serving.deployments import front_door

    app = front_door(served.settings, {"demo": served.handle}, KeyRing.of(served.settings))  # type: ignore[dict-item]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, seconds=30)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            (name,) = [model.id for model in client.models.list()]
            messages = [{"role": "user", "content": QUESTIONS[0]}]
            chat = client.chat.completions.create(model=name, messages=messages, temperature=0, n=2)  # type: ignore[arg-type]
            for choice in chat.choices:
                assert (choice.message.content or "").strip() == "The answer is \\boxed{19}."
                assert "12 + 7 = 19" in choice.message.reasoning_content  # type: ignore[attr-defined]
            short = client.chat.completions.create(
                model=name,
                messages=messages,  # type: ignore[arg-type]
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"thinking_budget": 5},
            )
            chunks = list(short)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert "\\boxed" in text
            usage = chunks[-1].usage
            assert usage is not None and usage.completion_tokens_details.reasoning_tokens < 15  # type: ignore[union-attr]
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def test_a_completion_outlives_the_engine_that_began_it(served: Served):
    import psutil  # pyright: ignore[reportMissingModuleSource]

    drawn = request(QUESTIONS[1], request_id="survivor", max_tokens=600, temperature=2.0, seed=11, interval_seconds=0.0)

    async def survive() -> list[Piece]:
        pieces = []
        async for piece in served.source.stream(drawn):
            pieces.append(piece)
            if len(pieces) == 5:
                ours = psutil.Process().children(recursive=True)
                (core,) = [child for child in ours if child.name().startswith("VLLM::EngineCor")]
                os.kill(core.pid, signal.SIGKILL)
        return pieces

    pieces = asyncio.run(survive())
    assert sum(piece.resumed for piece in pieces) == 1
    whole = merged(pieces)
    assert len(whole.token_ids) == 600 or whole.finish_reason == "stop"


def completed(served: Served, *requests: ServedRequest) -> list[Piece]:
    """Return each request's whole completion as one piece; all are asked for at once."""

    async def whole(asked: ServedRequest) -> Piece:
        return merged([piece async for piece in served.source.stream(asked)])

    async def gather() -> list[Piece]:
        return await asyncio.gather(*map(whole, requests))

    return asyncio.run(gather())


def merged(pieces: list[Piece]) -> Piece:
    assert pieces[-1].finish_reason is not None and not any(piece.finish_reason for piece in pieces[:-1])
    return Piece(
        tuple(token for piece in pieces for token in piece.token_ids),
        None if pieces[0].logprobs is None else tuple(entry for piece in pieces for entry in piece.logprobs or ()),
        pieces[-1].finish_reason,
        any(piece.thinking_closed for piece in pieces),
    )


def request(question: str, **others: object) -> ServedRequest:
    asked = ServedRequest(f"{hash(question)}-{len(others)}", prompt(question), 400, temperature=0.0, top_p=1.0, seed=0)
    return replace(asked, **others)  # type: ignore[arg-type]


def limit(budget: int) -> ThinkingLimit:
    return ThinkingLimit(budget, "</think>", tuple(tokens(CLOSE_TEXT)))


def greedy(prompt_token_ids: list[int], max_tokens: int) -> GenerationRequest:
    return GenerationRequest(prompt_token_ids, max_tokens=max_tokens, temperature=0, top_p=1, seed=0, stop_texts=())


def prompt(question: str) -> tuple[int, ...]:
    chat = [{"role": "user", "content": question}]
    text = load_tokenizer(demo_model_dir()).apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return tuple(tokens(text))  # type: ignore[arg-type]


def tokens(text: str) -> list[int]:
    return load_tokenizer(demo_model_dir())(text, add_special_tokens=False).input_ids  # type: ignore[return-value]


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
