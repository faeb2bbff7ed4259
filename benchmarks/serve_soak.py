"""Does the server hold under overload: good, bad, slow and vanishing clients for ten minutes, its only replica killed twice?

Every request that was accepted must end with a complete answer or a proper error (OpenAI's shape, as a status or as an
event), and nothing may leak: places in the engine, memory, processes, descriptors. What each kind of client may see is
written down in KINDS; anything else is counted as broken and printed.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil

from benchmarks.serving_load import Reply, ServerProcess, ask, server, session
from tokensqueeze.config import ProblemSource
from tokensqueeze.problems.source import read_problems

SETTINGS = """
models = [{{ path = "{model}", name = "demo", engine = {{ max_batch_size = {places} }} }}]
access_log = "{access_log}"
[limits]
max_concurrency = 40
max_queued = 16
body_timeout_seconds = 3
request_timeout_seconds = 120
"""
PLACES = 16
GAUGES = ("tokensqueeze_requests_in_flight ", "tokensqueeze_choices_")
WARM_UP_SHARE = 0.15
"""Of the soak's time; memory is compared between its end and the soak's."""

Client = Callable[["Soak", random.Random], Awaitable[str]]


@dataclass
class Soak:
    served: ServerProcess
    http: aiohttp.ClientSession
    questions: list[str]

    def body(self, rng: random.Random, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": rng.choice(self.questions)}]
        return {"model": "demo", "messages": messages, "temperature": 0.7, "seed": rng.getrandbits(31), **more}

    async def send(self, body: dict[str, Any]) -> Reply:
        return await ask(self.http, self.served.url, body)


def outcome(reply: Reply) -> str:
    if reply.complete:
        return "complete"
    if reply.proper_error:
        return f"error {reply.status} {reply.error}"
    return f"broken {reply.status} {reply.error}"


async def whole(soak: Soak, rng: random.Random) -> str:
    return outcome(await soak.send(soak.body(rng, n=rng.choice([1, 1, 2]))))


async def streamed(soak: Soak, rng: random.Random) -> str:
    budget = rng.choice([None, 10, 40])
    more = {} if budget is None else {"thinking_budget": budget}
    return outcome(await soak.send(soak.body(rng, stream=True, stream_options={"include_usage": True}, **more)))


async def slow_reader(soak: Soak, rng: random.Random) -> str:
    """Read a stream a few bytes at a time."""
    reader, writer = await _raw(soak, json.dumps(soak.body(rng, stream=True)).encode())
    received = b""
    while chunk := await asyncio.wait_for(reader.read(64), 120):
        received += chunk
        await asyncio.sleep(0.02)
    writer.close()
    if b"data: [DONE]" in received:
        return "complete"
    return "error in slow reader" if b'"error"' in received else f"broken slow reader {received[-80:]!r}"


async def vanishing(soak: Soak, rng: random.Random) -> str:
    """Go away in the middle of a stream."""
    _, writer = await _raw(soak, json.dumps(soak.body(rng, stream=True, max_tokens=900)).encode())
    await asyncio.sleep(rng.random() * 0.3)
    writer.transport.abort()
    return "went away"


async def slow_body(soak: Soak, rng: random.Random) -> str:
    """Send half a body and no more: the server must not wait for ever."""
    body = json.dumps(soak.body(rng)).encode()
    reader, writer = await _raw(soak, body, send=len(body) // 2)
    head = await asyncio.wait_for(reader.read(4096), 30)
    writer.close()
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
    return f"error {status}" if status == 408 else f"broken slow body {status}"


async def bad(soak: Soak, rng: random.Random) -> str:
    body: Any = rng.choice(
        [
            b"{not json",
            b"\xff\xfe\x00" * 20,
            soak.body(rng, model="nobody"),
            soak.body(rng, max_tokens=-1),
            soak.body(rng, temperature=1e9),
            soak.body(rng, stop=["x"] * 5000),
            soak.body(rng, messages=[{"role": "user", "content": "long " * 20_000}]),
            soak.body(rng, n=10**6),
            {"messages": 3},
            b" " * 2_000_000,
        ]
    )
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        async with soak.http.post(
            f"{soak.served.url}/v1/chat/completions", data=data, headers={"Content-Type": "application/json"}
        ) as response:
            answer = await response.json()
    except aiohttp.ClientError as error:
        # A server may refuse a huge body and close while it is being sent.
        return "error closed while sending" if len(data) > 10**6 else f"broken bad {type(error).__name__}"
    proper = 400 <= response.status < 500 and {"message", "type", "param", "code"} <= set(answer.get("error", {}))
    return f"error {response.status} {answer['error']['code']}" if proper else f"broken bad {response.status} {answer}"


async def wrong_key(soak: Soak, rng: random.Random) -> str:
    headers = {"Authorization": "Bearer tsq-nobody"}
    async with soak.http.post(f"{soak.served.url}/v1/chat/completions", json=soak.body(rng), headers=headers) as response:
        return f"error {response.status}" if response.status == 401 else f"broken wrong key {response.status}"


KINDS: dict[Client, tuple[float, str]] = {
    # Share of the clients, and the beginnings of what they may see.
    streamed: (0.35, "complete|error 429|error 503|error 200|error 504"),
    whole: (0.25, "complete|error 429|error 503|error 504"),
    slow_reader: (0.08, "complete|error"),
    vanishing: (0.12, "went away"),
    slow_body: (0.05, "error"),
    bad: (0.1, "error 4|error closed"),
    wrong_key: (0.05, "error 401"),
}


async def _raw(soak: Soak, body: bytes, send: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(soak.served.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {soak.served.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        + body[: send or len(body)]
    )
    await writer.drain()
    return reader, writer


@dataclass
class Sizes:
    """What may leak, at one moment."""

    seconds: float
    resident_mib: dict[str, float]
    processes: int
    descriptors: int

    @classmethod
    def of(cls, served: ServerProcess, began: float) -> "Sizes":
        own = psutil.Process(served.process.pid)
        return cls(time.monotonic() - began, served.resident_mib(), len(served.descendants()), own.num_fds())


async def run_soak(served: ServerProcess, questions: list[str], args: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    sizes: list[Sizes] = []
    kills: list[float] = []
    end = began + args.seconds
    clients, shares = list(KINDS), [share for share, _ in KINDS.values()]
    async with session(served.key) as http:
        soak = Soak(served, http, questions)

        async def client(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end:
                kind = rng.choices(clients, shares)[0]
                try:
                    result = await asyncio.wait_for(kind(soak, rng), 180)
                except (OSError, ValueError, aiohttp.ClientError, TimeoutError) as error:
                    result = f"broken {kind.__name__} {type(error).__name__} {error}"
                kinds[kind.__name__] += 1
                allowed = any(result.startswith(start) for start in KINDS[kind][1].split("|"))
                seen[result if allowed else f"NOT ALLOWED {kind.__name__}: {result}"] += 1
                if result.startswith("error 429"):
                    await asyncio.sleep(rng.random() * 0.5)

        async def watch() -> None:
            moments = [began + args.seconds * share for share in (0.35, 0.65)]
            while time.monotonic() < end:
                await asyncio.sleep(min(5.0, args.seconds / 20))
                sizes.append(await asyncio.to_thread(Sizes.of, served, began))
                if moments and time.monotonic() > moments[0]:
                    moments.pop(0)
                    for replica in served.replicas()[:1]:
                        replica.kill()
                        kills.append(time.monotonic() - began)
                print(f"{time.monotonic() - began:6.0f} s  {sum(seen.values())} answers  {sizes[-1].resident_mib}", flush=True)

        await asyncio.gather(watch(), *(client(number) for number in range(args.clients)))
        await asyncio.sleep(3)
        async with http.get(f"{served.url}/metrics") as response:
            metrics = await response.text()
        last = Sizes.of(served, began)
        # As many at once as the engine has places: one that was lost would show.
        afterwards = await asyncio.gather(*(soak.send(soak.body(random.Random(seed), stream=True)) for seed in range(PLACES)))
    first = next(size for size in sizes if size.seconds >= WARM_UP_SHARE * args.seconds)
    left = [line for line in metrics.splitlines() if line.startswith(GAUGES)]
    return {
        "seconds": args.seconds,
        "clients": args.clients,
        "requests": sum(seen.values()),
        "kinds": dict(kinds),
        "outcomes": dict(seen.most_common()),
        "not_allowed": sum(count for name, count in seen.items() if name.startswith("NOT ALLOWED")),
        "kills_at_seconds": [round(kill, 1) for kill in kills],
        "resident_mib": {"after_warm_up": first.resident_mib, "at_end": last.resident_mib},
        "processes": [first.processes, last.processes],
        "descriptors": [first.descriptors, last.descriptors],
        # The request for the numbers is under way itself.
        "gauges_at_end": left,
        "answers_afterwards": sum(reply.complete for reply in afterwards),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=48)
    args = parser.parse_args()
    questions = [problem.question for problem in read_problems(ProblemSource(path="demo:test", limit=200), key="problems")]
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "serve.toml"
        settings.write_text(SETTINGS.format(model=args.model, places=PLACES, access_log=Path(folder) / "access.log"))
        with server(["--settings", str(settings)], Path(folder) / "server.log") as served:
            result = asyncio.run(run_soak(served, questions, args))
    print(json.dumps(result))
    if result["not_allowed"] or len(result["kills_at_seconds"]) != 2 or result["answers_afterwards"] != PLACES:
        raise SystemExit("the server did not hold")


if __name__ == "__main__":
    main()
