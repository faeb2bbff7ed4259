"""The whole server as one Ray Serve application, as on a cluster: Serve's proxy in front, leaving clients, a new version."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import ray
from ray import serve

from tokensqueeze.serving.auth import key_digest
from tokensqueeze.serving.deployments import deployment_name, serving_app
from tokensqueeze.serving.settings import ServeSettings, check_serve_settings

pytestmark = pytest.mark.slow

KEY = "tsq-a-key-for-this-test"
QUESTION = "Tom has 12 apples. Tom buys 7 apples. Tom gives away 3 apples. How many apples?"
RAMBLING: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 2.0,
    "max_tokens": 900,
    "stream": True,
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving") / "access.log"


@pytest.fixture(scope="module")
def client(log: Path) -> Iterator[openai.OpenAI]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Room for the old version beside the new one.
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        deploy(log, slots=8)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=120)
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(log: Path, *, slots: int) -> None:
    settings: ServeSettings = check_serve_settings(
        {
            "models": [{"path": "demo", "engine": {"max_batch_size": slots}}],
            "keys": [{"name": "test", "sha256": key_digest(KEY)}],
            "access_log": str(log),
        }
    )
    serve.run(serving_app(settings), name="tokensqueeze", route_prefix="/")


def test_answers_through_serves_own_proxy(client: openai.OpenAI):
    asked = {"model": "demo", "messages": RAMBLING["messages"], "temperature": 0.7, "seed": 3}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**asked, stream=True))  # type: ignore[call-overload]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_a_client_that_leaves_frees_its_place(client: openai.OpenAI, log: Path):
    streams = [client.chat.completions.create(**RAMBLING, seed=seed) for seed in range(4)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    engine = serve.get_deployment_handle(deployment_name("demo"), "tokensqueeze")
    until(lambda: engine.load.remote().result().active == 0, "the engine still works for clients that have left", seconds=3)
    until(lambda: statuses(log).count(499) == len(streams), "the access log has not every client that left")


def test_a_new_version_drops_no_stream(client: openai.OpenAI, log: Path):
    seeds = range(6)
    finished: dict[int, str | None] = dict.fromkeys(seeds)
    begun = threading.Barrier(len(seeds) + 1)

    def read(seed: int) -> None:
        stream = iter(client.chat.completions.create(**RAMBLING, seed=seed))
        next(stream)
        begun.wait(60)
        for chunk in stream:
            for choice in chunk.choices:
                finished[seed] = choice.finish_reason or finished[seed]

    readers = [threading.Thread(target=read, args=(seed,)) for seed in seeds]
    for reader in readers:
        reader.start()
    begun.wait(60)
    deploy(log, slots=4)
    for reader in readers:
        reader.join(120)
    assert all(finished.values()), finished
    engine = serve.get_deployment_handle(deployment_name("demo"), "tokensqueeze")
    assert engine.load.remote().result().slots == 4


def statuses(log: Path) -> list[int]:
    return [json.loads(line)["status"] for line in log.read_text().splitlines()]


def until(holds: Any, otherwise: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)
