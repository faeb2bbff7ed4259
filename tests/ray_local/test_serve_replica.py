"""The transformers engine under Ray Serve: streams that end, leave, lose their replica, or outlive a new version."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import pytest
import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.handle import DeploymentHandle

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.engines.build import build_engine
from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.engine_replica import EngineLoad, EngineReplica
from tokensqueeze.serving.generation import ServedRequest
from tokensqueeze.serving.handle_source import HandleSource

pytestmark = pytest.mark.slow

SLOTS = 8
MOST = 900
TEMPERATURE = 2.5
"""Hot enough for the demo model to ramble."""
QUESTION = "Ann has 12 apples, buys 34 more and gives 7 to Bob. How many are left?"


@dataclass
class Streamed:
    token_ids: list[int] = field(default_factory=list)
    pieces: int = 0
    resumed: int = 0
    finish_reason: str | None = None


@pytest.fixture(scope="module")
def engines() -> Iterator[DeploymentHandle]:
    """Two replicas of the demo model."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location=ProxyLocation.Disabled)
    try:
        yield deploy(slots=SLOTS, replicas=2)
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(*, slots: int, replicas: int) -> DeploymentHandle:
    deployment = serve.deployment(EngineReplica).options(
        name="engine",
        num_replicas=replicas,
        max_ongoing_requests=2 * SLOTS,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
        graceful_shutdown_timeout_s=60,
        health_check_period_s=1,
    )
    app = deployment.bind(demo_model_dir(), EngineSettings(max_batch_size=slots), "auto")
    return serve.run(app, name="engines", route_prefix=None)


def prompt() -> tuple[int, ...]:
    messages = [{"role": "user", "content": QUESTION}]
    tokenizer: Any = load_tokenizer(demo_model_dir())
    return tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, list[int]]:
    """What the engine gives by itself for some seeds: of many the longest, so that there is a middle to disturb."""
    engine = build_engine(demo_model_dir(), EngineSettings(max_batch_size=64), "auto")
    asked = [GenerationRequest(prompt(), MOST, TEMPERATURE, 1.0, seed) for seed in range(64)]
    completions = {seed: generation.token_ids for seed, generation in enumerate(engine.generate(asked))}
    longest = sorted(completions, key=lambda seed: -len(completions[seed]))[:SLOTS]
    assert min(len(completions[seed]) for seed in longest) > 200
    return {seed: completions[seed] for seed in longest}


def request(seed: int) -> ServedRequest:
    return ServedRequest(f"request-{seed}", prompt(), MOST, TEMPERATURE, 1.0, seed, interval_seconds=0.02)


async def read(source: HandleSource, seed: int, into: Streamed) -> None:
    async for piece in source.stream(request(seed)):
        into.token_ids += piece.token_ids
        into.pieces += 1
        into.resumed += piece.resumed
        into.finish_reason = piece.finish_reason


async def read_all(source: HandleSource, seeds: Iterable[int], disturb: Callable[[], None]) -> dict[int, Streamed]:
    """Stream every seed at once, and disturb them when all have begun."""
    streams = {seed: Streamed() for seed in seeds}
    async with asyncio.TaskGroup() as tasks:
        for seed, stream in streams.items():
            tasks.create_task(read(source, seed, stream))
        while any(stream.pieces < 2 for stream in streams.values()):
            await asyncio.sleep(0.005)
        assert not all(stream.finish_reason for stream in streams.values())
        await asyncio.to_thread(disturb)
    return streams


def loads(engines: DeploymentHandle) -> list[EngineLoad]:
    return engines.broadcast("load").results(timeout_s=20)


def replica_pids() -> set[int]:
    return {
        process.pid
        for process in psutil.Process().children(recursive=True)
        if "ServeReplica:engines:engine" in " ".join(process.cmdline())
    }


def test_streams_are_what_the_engine_gives_by_itself(engines: DeploymentHandle, undisturbed: dict[int, list[int]]) -> None:
    streams = asyncio.run(read_all(HandleSource(engines), undisturbed, lambda: None))
    assert {seed: stream.token_ids for seed, stream in streams.items()} == undisturbed
    for stream in streams.values():
        assert stream.resumed == 0
        # Tokens travel together, and not all at once.
        assert 3 < stream.pieces < len(stream.token_ids) / 2


def test_a_client_that_leaves_early_frees_its_slot(engines: DeploymentHandle, undisturbed: dict[int, list[int]]) -> None:
    async def leave_early(seed: int) -> None:
        async with aclosing(HandleSource(engines).stream(request(seed))) as pieces:
            await anext(pieces)

    async def be_cancelled(seed: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await read(HandleSource(engines), seed, Streamed())

    async def all_leave() -> None:
        await asyncio.gather(*(leave(seed) for seed in undisturbed for leave in (leave_early, be_cancelled)))

    asyncio.run(all_leave())
    # Sixteen streams of hundreds of tokens would keep both replicas busy for seconds.
    deadline = time.monotonic() + 0.5
    while any(load.active or load.waiting for load in loads(engines)):
        assert time.monotonic() < deadline
    assert [load.slots for load in loads(engines)] == [SLOTS, SLOTS]


def test_what_can_not_be_generated_is_said_and_costs_no_replica(engines: DeploymentHandle) -> None:
    async def ask() -> None:
        async for _ in HandleSource(engines).stream(replace(request(1), prompt_token_ids=tuple(range(1024)))):
            pass

    pids = replica_pids()
    with pytest.raises(EngineError, match="1024 tokens of prompt and 0 of completion: the context is 1024"):
        asyncio.run(ask())
    assert replica_pids() == pids


def test_streams_whose_replica_is_killed_are_gone_on_with_token_for_token(
    engines: DeploymentHandle, undisturbed: dict[int, list[int]]
) -> None:
    before = replica_pids()
    assert len(before) == 2
    streams = asyncio.run(read_all(HandleSource(engines), undisturbed, lambda: os.kill(before.copy().pop(), signal.SIGKILL)))
    assert {seed: stream.token_ids for seed, stream in streams.items()} == undisturbed
    assert 1 <= sum(stream.resumed for stream in streams.values()) <= SLOTS
    wait_for_two(engines)
    assert len(replica_pids() - before) == 1


def test_a_new_version_takes_over_without_dropping_a_stream(
    engines: DeploymentHandle, undisturbed: dict[int, list[int]]
) -> None:
    wait_for_two(engines)
    before = replica_pids()
    streams = asyncio.run(read_all(HandleSource(engines), undisturbed, deploy_anew))
    assert {seed: stream.token_ids for seed, stream in streams.items()} == undisturbed
    assert sum(stream.resumed for stream in streams.values()) == 0
    assert [load.slots for load in loads(engines)] == [SLOTS + 1]
    assert not replica_pids() & before


def wait_for_two(engines: DeploymentHandle) -> None:
    deadline = time.monotonic() + 60
    while asyncio.run(HandleSource(engines).running()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def deploy_anew() -> None:
    # One replica starts sooner than two.
    deploy(slots=SLOTS + 1, replicas=1)
