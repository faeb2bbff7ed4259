"""The real app under a real uvicorn, in a thread, in front of engines that play scripts: one model name per script."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from tests.unit.scripted_source import Script, ScriptedSource
from tokensqueeze.serving.access_log import AccessLog
from tokensqueeze.serving.answering import Answering
from tokensqueeze.serving.app import build_app
from tokensqueeze.serving.auth import KeyRing, key_digest
from tokensqueeze.serving.hosted_model import HostedModel
from tokensqueeze.serving.http_server import server_config
from tokensqueeze.serving.metrics import ServingMetrics
from tokensqueeze.serving.settings import ServedModel, ServeSettings, check_serve_settings

KEY = "tsq-the-key-of-ann"
EXPIRED_KEY = "tsq-bob-had-one-once"
AUTH = {"Authorization": f"Bearer {KEY}"}
_KEYS = [
    {"name": "ann", "sha256": key_digest(KEY)},
    {"name": "bob", "sha256": key_digest(EXPIRED_KEY), "expires": "2020-01-31"},
]


@dataclass(frozen=True)
class Built:
    app: FastAPI
    sources: Mapping[str, ScriptedSource]
    log_path: Path

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


@dataclass(frozen=True)
class Served(Built):
    port: int
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def built(scripts: Mapping[str, Sequence[Script]], log_path: Path, **settings: Any) -> Built:
    """Return the app over one scripted source per model name; a model's i-th choice plays its i-th script."""
    values = {"models": [{"path": "demo", "name": name} for name in scripts], "keys": _KEYS} | settings
    checked = check_serve_settings(values)
    sources = {name: ScriptedSource(*played) for name, played in scripts.items()}
    models = {name: (replace(_demo(checked), name=name), source) for name, source in sources.items()}

    async def readiness() -> dict[str, int]:
        return {name: await source.running() for name, source in sources.items()}

    app = build_app(
        Answering(models, checked),
        checked,
        readiness=readiness,
        metrics=ServingMetrics({name: model for name, (model, _) in models.items()}),
        access_log=AccessLog(log_path),
        keys=KeyRing.of(checked),
    )
    return Built(app, sources, log_path)


@contextlib.contextmanager
def served(scripts: Mapping[str, Sequence[Script]], log_path: Path, **settings: Any) -> Iterator[Served]:
    made = built(scripts, log_path, **settings)
    server = uvicorn.Server(server_config(made.app, drain_seconds=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(made.app, made.sources, made.log_path, port, server)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something is true; fail if it does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true after {seconds} s"
        time.sleep(0.005)


@cache
def _demo_for(thinking: str) -> HostedModel:
    settings = ServeSettings.model_validate_json(f'{{"models": [{{"path": "demo"}}], "thinking": {thinking}}}')
    return HostedModel.load("demo", ServedModel(path="demo"), settings)


def _demo(settings: ServeSettings) -> HostedModel:
    return _demo_for(settings.thinking.model_dump_json())


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """What the error says, which is all that the body holds."""
        error = self.json()["error"]
        assert set(self.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
        assert error["message"] and error["type"]
        return error

    @property
    def events(self) -> list[Any]:
        """The events of a stream; `[DONE]` as text."""
        *events, rest = self.body.decode().split("\n\n")
        assert rest == "" and all(event.startswith("data: ") for event in events)
        return [text if (text := event.removeprefix("data: ")) == "[DONE]" else json.loads(text) for event in events]


def ask(server: Served, path: str, body: Any = None, *, headers: Mapping[str, str] = AUTH, method: str | None = None) -> Reply:
    """Send a request on a connection of its own; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    typed = {"Content-Type": "application/json", **headers} if data is not None else dict(headers)
    try:
        connection.request(method or ("GET" if data is None else "POST"), path, data, typed)
        response = connection.getresponse()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def chat(model: str = "demo", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "What is 2 + 3?"}], **fields}


def send_raw(server: Served, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts, `pause` seconds apart, and return all that comes back until the server closes, or is silent for 2 seconds."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=2) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        try:
            while more := connection.recv(65536):
                received += more
        except TimeoutError:
            pass
    return received


def head(*headers: str, path: str = "/v1/chat/completions", key: str = KEY) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, "", ""]).encode()
