"""`tokensqueeze serve`: engines on a private Ray Serve, the ingress under uvicorn in this process, on this machine alone.

The ingress talks to the engines by Serve's handles; that spares the hop through Serve's proxy, which on a cluster stands in
front of the same app, and leaves sockets, signals and draining to this process.
"""

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.serve.config import ProxyLocation

from tokensqueeze.engines.checkpoint import model_dir
from tokensqueeze.errors import EngineError, SettingsError
from tokensqueeze.ray_words import ray_words_to
from tokensqueeze.serving.auth import KeyRing
from tokensqueeze.serving.deployment_options import ENVIRONMENT, QUIET
from tokensqueeze.serving.deployments import deployment_name, engine_app, front_door
from tokensqueeze.serving.http_server import Server
from tokensqueeze.serving.settings import ServeSettings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


@dataclass(frozen=True)
class Listening:
    """What a person needs to use the server."""

    url: str
    key: str | None
    """The key that was made for this start; none where the settings name keys, or want none."""
    models: list[str]


def serve_models(settings: ServeSettings, *, announce: Callable[[Listening], None], say: Callable[[str], None]) -> None:
    """Serve until told to stop (SIGINT or SIGTERM), then let requests under way end.

    `announce` is called when requests are answered; `say` tells what takes long.
    Raises `SettingsError` for an address that can't be used, `ModelError` for a directory that can't be served, and
    `EngineError` where an engine doesn't start.
    """
    with _bound(settings) as listener:
        for model in settings.models:
            model_dir(model.path)  # said before Ray takes seconds to start
        keys, key = KeyRing.for_start(settings)
        with _engines(settings, say) as handles:
            app = front_door(settings, handles, keys)
            listening = Listening(_url(listener), key, settings.model_names())
            server = Server(app, drain_seconds=settings.drain_seconds, announce=lambda: announce(listening), say=say)
            asyncio.run(server.serve(sockets=[listener]))
            say("stopping Ray")


def _url(listener: socket.socket) -> str:
    """Return the server's address; where it listens at every address of this machine, the machine's name."""
    address, port = listener.getsockname()[:2]
    if ipaddress.ip_address(address).is_unspecified:
        address = socket.gethostname()
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


@contextlib.contextmanager
def _bound(settings: ServeSettings) -> Iterator[socket.socket]:
    where = f"host, port: {settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise SettingsError(f"{where}: can't be listened to ({error.strerror or error}); choose another with --port") from error
    with listener:
        yield listener


@contextlib.contextmanager
def _engines(settings: ServeSettings, say: Callable[[str], None]) -> "Iterator[dict[str, DeploymentHandle]]":
    """Deploy the engines on a Ray of their own, and yield their handles by model name."""
    names = settings.model_names()
    apps = {name: engine_app(name, model, settings) for name, model in zip(names, settings.models, strict=True)}
    wanted = sum((model.replicas.max or max(1, model.replicas.min)) * model.replicas.cpus for model in settings.models)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    say("starting Ray")
    _start_ray(num_cpus=max(os.cpu_count() or 1, math.ceil(wanted)))
    try:
        # No proxy of Serve's: requests come by this process's listener alone.
        serve.start(proxy_location=ProxyLocation.Disabled, logging_config=QUIET)
        say(f"loading {', '.join(names)}")
        targets = [serve.RunTarget(app, name=deployment_name(name), route_prefix=None) for name, app in apps.items()]
        try:
            handles = serve.run_many(targets)
        except RuntimeError as error:
            raise EngineError(f"the engines did not start: {error}") from error
        yield dict(zip(names, handles, strict=True))
    finally:
        # Serve's controller ends before Ray's own processes have heard its last calls, and they say so.
        with ray_words_to(Path(os.devnull), stdout=True):
            with contextlib.suppress(Exception):  # Ray may be gone already, and nothing that is served depends on it any more
                serve.shutdown()
            ray.shutdown()


def _start_ray(num_cpus: int) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": ENVIRONMENT},
            _system_config={
                # Engines are what the machine is for; by itself Ray lets its workers step back behind all else.
                "worker_niceness": 0,
                # Its exporter would tell Ray's own numbers to whoever reaches this machine, without a token.
                "enable_metrics_collection": False,
            },
        )
    except Exception as error:  # Ray raises whatever its many parts do; all of it means that it is not there
        ray.shutdown()
        raise EngineError(f"Ray did not start ({error}); if the machine is busy, try again") from error
