"""`tokensqueeze serve` as a user meets it: a real process, asked by the official client; its engine killed, told to stop."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletion

from benchmarks.serving_load import ServerProcess, server

QUESTION = "Tom has 12 apples. Tom buys 7 apples. Tom gives away 3 apples. How many apples?"
MESSAGES: list[dict[str, str]] = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def served(logs: Path) -> Iterator[ServerProcess]:
    arguments = ["demo", "--name", "first", "--access-log", str(logs / "access.log")]
    with server(arguments, logs / "errors.log") as process:
        yield process


@pytest.fixture(scope="module")
def client(served: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0, timeout=120)


def test_a_chat_returns_reasoning_apart_from_the_answer_with_both_counted(client: openai.OpenAI):
    answer = client.chat.completions.create(model="first", messages=MESSAGES, temperature=0, seed=1)  # type: ignore[arg-type]
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.reasoning_content and "</think>" not in choice.message.reasoning_content  # type: ignore[attr-defined]
    assert choice.message.content and "boxed" in choice.message.content
    assert answer.usage and answer.usage.completion_tokens_details
    details = answer.usage.completion_tokens_details
    assert details.reasoning_tokens + details.answer_tokens == answer.usage.completion_tokens  # type: ignore[attr-defined]


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI):
    settings = {"model": "first", "messages": MESSAGES, "temperature": 0.7, "seed": 5}
    whole = client.chat.completions.create(**settings)  # type: ignore[call-overload]
    stream = client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    chunks = list(stream)
    reasoning = "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks if c.choices)
    content = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert (reasoning, content) == (whole.choices[0].message.reasoning_content, whole.choices[0].message.content)
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_several_choices_and_clients_at_once_are_each_their_own(served: ServerProcess):
    async def ask_all() -> list[ChatCompletion]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, timeout=120) as http:
            jobs = [
                http.chat.completions.create(model="first", messages=MESSAGES, temperature=1, n=2, seed=seed)  # type: ignore[arg-type]
                for seed in (1, 2, 1)
            ]
            return await asyncio.gather(*jobs)

    first, second, again = asyncio.run(ask_all())
    texts = [[choice.message.reasoning_content for choice in answer.choices] for answer in (first, second, again)]  # type: ignore[attr-defined]
    assert texts[0] == texts[2], "the same seed gives the same answers, whatever else runs beside it"
    assert len({*texts[0], *texts[1]}) == 4


def test_a_budget_closes_the_thinking(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="first",
        messages=MESSAGES,  # type: ignore[arg-type]
        temperature=0,
        extra_body={"thinking_budget": 5},
    )
    details = answer.usage.completion_tokens_details  # type: ignore[union-attr]
    # Five tokens, and the forced close with its tag.
    assert 5 < details.reasoning_tokens <= 5 + 4  # type: ignore[operator, union-attr]
    assert answer.choices[0].message.content
    assert answer.choices[0].thinking_closed_at_budget is True  # type: ignore[attr-defined]


def test_errors_are_those_of_the_official_client(served: ServerProcess, client: openai.OpenAI):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="first"):
        client.chat.completions.create(model="nobody", messages=MESSAGES)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="first", messages=MESSAGES, temperature=-1)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="first", messages=[{"role": "user", "content": "apples " * 3000}])


def test_a_killed_engine_loses_no_stream(served: ServerProcess, client: openai.OpenAI, logs: Path):
    settings = {"model": "first", "messages": MESSAGES, "temperature": 1.2, "seed": 11, "max_tokens": 900, "n": 4}
    undisturbed = client.chat.completions.create(**settings)  # type: ignore[call-overload]
    texts = dict.fromkeys(range(4), "")
    killed = False
    for chunk in client.chat.completions.create(**settings, stream=True):  # type: ignore[call-overload]
        for choice in chunk.choices:
            texts[choice.index] += getattr(choice.delta, "reasoning_content", None) or ""
        if not killed and any(texts.values()):
            (replica,) = served.replicas()
            replica.kill()
            killed = True
    assert killed
    last = json.loads((logs / "access.log").read_text().splitlines()[-1])
    assert last["resumed"] >= 1, "the engine had ended before it was killed"
    assert texts == {choice.index: choice.message.reasoning_content for choice in undisturbed.choices}


def test_a_client_that_goes_away_frees_its_place(served: ServerProcess, client: openai.OpenAI, logs: Path):
    stream = client.chat.completions.create(model="first", messages=MESSAGES, temperature=1.5, stream=True)  # type: ignore[arg-type]
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if any(json.loads(line)["status"] == 499 for line in (logs / "access.log").read_text().splitlines()):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the access log has no request that its client left")


def test_the_access_log_counts_and_keeps_no_text(served: ServerProcess, logs: Path):
    lines = [json.loads(line) for line in (logs / "access.log").read_text().splitlines()]
    assert any(line["status"] == 200 and line["reasoning_tokens"] > 0 for line in lines)
    assert "apples" not in (logs / "access.log").read_text()
    assert served.key not in (logs / "access.log").read_text() + (logs / "errors.log").read_text()


def test_told_to_stop_it_ends_what_is_under_way_and_leaves_no_process(tmp_path: Path):
    with server(["demo"], tmp_path / "errors.log") as served:
        below = served.descendants()
        request = urllib.request.Request(
            f"{served.url}/v1/chat/completions",
            json.dumps({"model": "demo", "messages": MESSAGES, "temperature": 1, "n": 8, "stream": True}).encode(),
            {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"},
        )
        received: list[bytes] = []
        with urllib.request.urlopen(request, timeout=60) as response:
            received.append(response.readline())
            served.process.send_signal(signal.SIGTERM)
            rest = threading.Thread(target=lambda: received.append(response.read()))
            rest.start()
            rest.join(60)
        assert received[-1].rstrip().endswith(b"data: [DONE]")
        assert served.process.wait(60) == 0
    deadline = time.monotonic() + 20
    while any(process.is_running() for process in below) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [process for process in below if process.is_running()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/model"], "nowhere/model: no such directory"),
        (["demo", "--host", "0.0.0.0"], "host: 0.0.0.0 can be reached from elsewhere, so it needs a key"),
        (["demo", "--no-key", "--host", "::"], "require_key: false"),
        (["demo", "--engine", "llama"], "models.0.engine.kind"),
        ([], "MODEL: missing"),
    ],
)
def test_bad_arguments_are_refused_with_the_reason_and_no_traceback(arguments: list[str], said: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tokensqueeze.cli", "serve", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
