"""What Ray Serve runs for some settings: a deployment of engines per model and, on a cluster, the ingress in front."""

import asyncio
import hashlib
import re
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.serve import metrics as serving_metrics
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from tokensqueeze.engines.checkpoint import model_dir
from tokensqueeze.errors import SettingsError
from tokensqueeze.serving.access_log import AccessLog
from tokensqueeze.serving.answering import Answering
from tokensqueeze.serving.app import build_app
from tokensqueeze.serving.auth import KeyRing
from tokensqueeze.serving.deployment_options import ENVIRONMENT, engine_options, lifecycle_options
from tokensqueeze.serving.engine_replica import EngineReplica
from tokensqueeze.serving.generation import TokenSource
from tokensqueeze.serving.handle_source import HandleSource
from tokensqueeze.serving.hosted_model import HostedModel
from tokensqueeze.serving.metrics import Mirror, ServingMetrics
from tokensqueeze.serving.settings import ServedModel, ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

_APPLICATION = "tokensqueeze"
_COUNT_SECONDS = 10.0
_INGRESS_REQUESTS = 4096
"""What Serve lets through to one ingress; the ingress's own limits turn away long before."""


def engine_app(name: str, model: ServedModel, settings: ServeSettings) -> "Application":
    """Return the deployment of one model's engines. Raises `ModelError` for a directory that can't be served."""
    folder = model_dir(model.path)
    if model.engine.kind == "vllm":
        from tokensqueeze.serving.vllm_source import vllm_deployment

        return vllm_deployment(deployment_name(name), folder, model, settings)
    deployment = serve.deployment(EngineReplica).options(
        **engine_options(deployment_name(name), model, settings),
        ray_actor_options={
            "num_cpus": model.replicas.cpus,
            "num_gpus": model.replicas.gpus,
            "runtime_env": {"env_vars": ENVIRONMENT},
        },
    )
    return deployment.bind(folder, model.engine, model.dtype)


def deployment_name(model_name: str) -> str:
    """Return a name that Serve takes: no two models share one, whatever signs their names have."""
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:6]
    return f"engine-{re.sub(r'[^A-Za-z0-9-]+', '-', model_name).strip('-')}-{digest}"


def token_source(model: ServedModel, handle: DeploymentHandle, settings: ServeSettings) -> TokenSource:
    if model.engine.kind == "vllm":
        from tokensqueeze.serving.vllm_source import VLLMSource

        return VLLMSource(handle, model_dir(model.path), resumes=settings.resumes)
    return HandleSource(handle, resumes=settings.resumes)


def front_door(
    settings: ServeSettings, handles: Mapping[str, DeploymentHandle], keys: KeyRing, *, mirror: Mirror | None = None
) -> "FastAPI":
    """Return the ingress's app over the handles of the engines' deployments, by model name."""
    sources: dict[str, TokenSource] = {}
    models: dict[str, tuple[HostedModel, TokenSource]] = {}
    for name, model in zip(settings.model_names(), settings.models, strict=True):
        sources[name] = token_source(model, handles[name], settings)
        models[name] = (HostedModel.load(name, model, settings), sources[name])

    async def readiness() -> dict[str, int]:
        return {name: await source.running() for name, source in sources.items()}

    return build_app(
        Answering(models, settings),
        settings,
        readiness=readiness,
        metrics=ServingMetrics({name: hosted for name, (hosted, _) in models.items()}, mirror=mirror),
        access_log=AccessLog(Path(settings.access_log) if settings.access_log else None),
        keys=keys,
    )


@serve.ingress()
class Ingress:
    """The ingress as a deployment, for a cluster: Serve's own proxy stands in front of it."""

    def __init__(self, settings: ServeSettings, *engines: DeploymentHandle):
        self._settings, self._engines = settings, engines

    async def __serve_build_asgi_app__(self) -> "FastAPI":
        handles = dict(zip(self._settings.model_names(), self._engines, strict=True))
        # Ray's own metrics add up over the cluster's ingresses; /metrics knows the one that is asked.
        app = front_door(self._settings, handles, KeyRing.of(self._settings), mirror=serving_metrics)
        self._counting = asyncio.create_task(_keep_counting(app))
        return app


async def _keep_counting(app: "FastAPI") -> None:
    """Keep the number of engines current for Ray's own metrics, whose readers ask nothing of the ingress."""
    while True:
        await app.state.count_engines()
        await asyncio.sleep(_COUNT_SECONDS)


def serving_app(settings: ServeSettings) -> "Application":
    """Return the whole application, engines and ingress, for `serve deploy` on a cluster.

    Raises `SettingsError` without a key: nobody would read one that is made up at the start, and Serve's proxy, which is told
    apart from these settings where to listen, may be reached from anywhere.
    """
    if not settings.require_key or not settings.keys:
        raise SettingsError("keys: a server on a cluster needs one, and require_key = true: `tokensqueeze serve-key NAME`")
    engines = [engine_app(name, model, settings) for name, model in zip(settings.model_names(), settings.models, strict=True)]
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        max_ongoing_requests=_INGRESS_REQUESTS,
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": ENVIRONMENT}},
        **lifecycle_options(settings),
    )
    return ingress.bind(settings, *engines)


def serve_until_stopped(settings: ServeSettings) -> None:
    """Serve on the Ray cluster that this process belongs to, until SIGINT or SIGTERM; then requests under way are let end."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    ray.init()
    serve.start(http_options={"host": settings.host, "port": settings.port})
    _check_address(settings)
    serve.run(serving_app(settings), name=_APPLICATION, route_prefix="/")
    print(f"serving {', '.join(settings.model_names())} at http://{settings.host}:{settings.port}/v1", flush=True)
    stopped.wait()
    serve.delete(_APPLICATION)


def _check_address(settings: ServeSettings) -> None:
    """Raise `SettingsError` where Serve's proxy runs already, and elsewhere: it keeps the address that it was started with."""
    client = _get_global_client()
    assert client, "serve.start has made one"
    held = client.http_config
    if (held.host, held.port) != (settings.host, settings.port):
        raise SettingsError(
            f"host, port: {settings.host}:{settings.port}, but the cluster's Serve listens at {held.host}:{held.port} until "
            "`serve shutdown`; set these, or shut it down first"
        )
