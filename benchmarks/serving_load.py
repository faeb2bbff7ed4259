"""A server process under test, and clients for it that cost little themselves."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil

Job = TypeVar("Job")

_STARTED = re.compile(r"serving .* at (http://\S+)/v1")
_KEY = re.compile(r"key: (\S+)")
_START_SECONDS = 180
_STOP_SECONDS = 90


@dataclass
class ServerProcess:
    """`tokensqueeze serve` in a process of its own, with the Ray processes below it."""

    process: subprocess.Popen[str]
    url: str
    key: str

    def descendants(self) -> list[psutil.Process]:
        """Return the server's own process and every one below it."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the engines, by their names under Ray."""
        return [found for found in self.descendants() if _command(found).startswith("ray::ServeReplica:engine-")]

    def resident_mib(self) -> dict[str, float]:
        """Return resident memory of the server's process, the engines, and all the rest of Ray, in MiB."""
        sizes = {"server": 0.0, "engines": 0.0, "ray": 0.0}
        for found in self.descendants():
            try:
                kind = "server" if found.pid == self.process.pid else "engines" if "engine-" in _command(found) else "ray"
                sizes[kind] += found.memory_info().rss / 2**20
            except psutil.NoSuchProcess:
                continue
        return sizes


def _command(found: psutil.Process) -> str:
    try:
        return " ".join(found.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


@contextmanager
def server(arguments: Sequence[str], log: Path) -> Iterator[ServerProcess]:
    """Start `tokensqueeze serve` with some arguments on a free port; stop it, drained, at the end."""
    command = [sys.executable, "-m", "tokensqueeze.cli", "serve", "--port", "0", *arguments]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        try:
            url, key = _announced(process, log)
            yield ServerProcess(process, url, key)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _announced(process: "subprocess.Popen[str]", log: Path) -> tuple[str, str]:
    assert process.stdout
    deadline = time.monotonic() + _START_SECONDS
    url = key = ""
    for line in process.stdout:
        url = match.group(1) if (match := _STARTED.search(line)) else url
        key = match.group(1) if (match := _KEY.match(line)) else key
        if url and key:
            return url, key
        if time.monotonic() > deadline:
            break
    raise RuntimeError(f"the server did not start; see {log}: {log.read_text()[-2000:]}")


@dataclass
class Reply:
    """One answer as a client saw it; times in seconds from the request's sending."""

    status: int
    complete: bool
    """Whether it ended as it should: a finish reason for every choice, and `[DONE]` in a stream."""
    proper_error: bool
    """Whether it was an error in OpenAI's shape, as a status or as an event."""
    first_token: float | None = None
    seconds: float = 0.0
    completion_tokens: int = 0
    text: str = ""
    error: str = ""


@asynccontextmanager
async def session(key: str, connections: int = 256) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=600)
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}, timeout=timeout, connector=connector) as http:
        yield http


async def ask(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Reply:
    """POST a chat request and read its answer to the end, streamed or not."""
    began = time.perf_counter()
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body) as response:
            if body.get("stream") and response.status == 200:
                reply = await _read_stream(response, began)
            else:
                reply = _read_whole(response.status, await response.read(), began)
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        reply = Reply(status=0, complete=False, proper_error=False, error=f"{type(error).__name__}: {error}")
    reply.seconds = time.perf_counter() - began
    return reply


async def _read_stream(response: aiohttp.ClientResponse, began: float) -> Reply:
    reply = Reply(status=200, complete=False, proper_error=False)
    finished, done = 0, False
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        if line.startswith(b"data: [DONE]"):
            done = True
            continue
        event = json.loads(line[6:])
        if "error" in event:
            reply.proper_error, reply.error = _openai_shape(event), event["error"].get("code") or event["error"].get("type", "")
            continue
        for choice in event["choices"]:
            text = (choice["delta"].get("reasoning_content") or "") + (choice["delta"].get("content") or "")
            if text and reply.first_token is None:
                reply.first_token = now - began
            reply.text += text
            finished += choice.get("finish_reason") is not None
        if event.get("usage"):
            reply.completion_tokens = event["usage"]["completion_tokens"]
    reply.complete = done and finished > 0 and not reply.error
    return reply


def _read_whole(status: int, body: bytes, began: float) -> Reply:
    try:
        answer = json.loads(body)
    except ValueError:
        return Reply(status=status, complete=False, proper_error=False, error=repr(body[:80]))
    if status != 200:
        error = answer.get("error") or {}
        return Reply(status=status, complete=False, proper_error=_openai_shape(answer), error=str(error.get("code")))
    complete = bool(answer["choices"]) and all(choice["finish_reason"] for choice in answer["choices"])
    return Reply(
        status=status,
        complete=complete,
        proper_error=False,
        completion_tokens=answer["usage"]["completion_tokens"],
        first_token=None,
        text="".join(
            (c["message"].get("reasoning_content") or "") + (c["message"]["content"] or "") for c in answer["choices"]
        ),
    )


def _openai_shape(answer: dict[str, Any]) -> bool:
    error = answer.get("error")
    return isinstance(error, dict) and {"message", "type", "param", "code"} <= set(error) and bool(error["message"])


async def closed_loop(jobs: Sequence[Job], concurrency: int, send: Callable[[Job], Awaitable[Reply]]) -> list[Reply]:
    """Send every job, `concurrency` at a time, each client its next when its last has ended; in the jobs' order."""
    replies: list[Reply | None] = [None] * len(jobs)
    waiting = iter(enumerate(jobs))

    async def client() -> None:
        for index, job in waiting:
            replies[index] = await send(job)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return [reply for reply in replies if reply is not None]
