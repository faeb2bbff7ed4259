"""The ingress: OpenAI's routes over one `Answering`, with keys, limits, health, numbers and the page at `/`.

It knows no Ray: it runs under any ASGI server, and as an ingress of Ray Serve's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tokensqueeze.serving.access_log import AccessLog
from tokensqueeze.serving.admission import Admission, Traffic
from tokensqueeze.serving.answering import Answering
from tokensqueeze.serving.api_description import OPEN_ROUTES, describe
from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.auth import KeyRing
from tokensqueeze.serving.body_limits import BodyLimits
from tokensqueeze.serving.delivery import Delivery
from tokensqueeze.serving.gate import Gate
from tokensqueeze.serving.metrics import CONTENT_TYPE, ServingMetrics
from tokensqueeze.serving.page_files import PAGE_HEADERS, PageFile, page_files
from tokensqueeze.serving.protocol import ChatCompletionRequest, CompletionRequest
from tokensqueeze.serving.request_body import read_request
from tokensqueeze.serving.settings import ServeSettings

_READINESS_SECONDS = 5.0
_LONG_BODY = 16_384
"""Bytes from which on other requests don't wait while a request's text is turned into tokens."""

Readiness = Callable[[], Awaitable[Mapping[str, int]]]
"""How many engines of each model can take requests."""


def build_app(
    answering: Answering,
    settings: ServeSettings,
    *,
    readiness: Readiness,
    metrics: ServingMetrics,
    access_log: AccessLog,
    keys: KeyRing,
) -> FastAPI:
    """`app.state.drain()` turns new requests away while those under way end; `app.state.in_flight()` counts these.

    `app.state.count_engines()` brings the gauge of engines up to date, which `/metrics` and `/ready` do by themselves.
    """
    app = FastAPI(title="tokensqueeze", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    traffic = Traffic()
    admission = Admission(settings.limits, on_change=metrics.observe_load)

    async def answer(request: Request, kind: type[ChatCompletionRequest] | type[CompletionRequest]) -> Response:
        record = request.state.record
        sent = await request.body()
        body = read_request(sent, kind)
        if len(sent) > _LONG_BODY:  # the tokenizer lets other threads run while it reads
            prepared = await asyncio.to_thread(answering.prepare, body, record)
        else:
            prepared = answering.prepare(body, record)
        return Delivery(
            prepared,
            record,
            admission=admission,
            holder=request.state.holder,
            traffic=traffic,
            limits=settings.limits,
        )

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(request, ChatCompletionRequest)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, CompletionRequest)

    @app.get("/v1/models")
    async def models() -> Response:
        return _json(answering.model_list().model_dump_json())

    # A name may have slashes in it.
    @app.get("/v1/models/{model:path}")
    async def one_model(model: str) -> Response:
        entries = {entry.id: entry for entry in answering.model_list().data}
        if model not in entries:
            message = f"The model {model[:100]!r} is not served here; there are {', '.join(entries)}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return _json(entries[model].model_dump_json())

    _add_operation(app, settings, readiness, metrics, traffic)
    _add_page(app)
    app.add_middleware(BodyLimits, limits=settings.limits)
    app.add_middleware(
        Gate,
        routes=app.router.routes,
        open_routes=OPEN_ROUTES | page_files().keys(),
        keys=keys,
        traffic=traffic,
        metrics=metrics,
        access_log=access_log,
        retry_after=settings.limits.retry_after_seconds,
    )
    app.state.drain = lambda: setattr(traffic, "draining", True)
    app.state.in_flight = lambda: traffic.in_flight

    async def count_engines() -> None:
        metrics.observe_replicas(await _engines(readiness, settings))

    app.state.count_engines = count_engines
    return app


def _add_operation(
    app: FastAPI, settings: ServeSettings, readiness: Readiness, metrics: ServingMetrics, traffic: Traffic
) -> None:
    """Add what the operator asks: alive, ready, numbers, the description of the API."""
    # Models that may go down to no engine are started by a request.
    started_on_demand = {
        name for name, model in zip(settings.model_names(), settings.models, strict=True) if model.replicas.min == 0
    }

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        engines = await _engines(readiness, settings)
        metrics.observe_replicas(engines)
        waiting = [name for name, running in engines.items() if running == 0 and name not in started_on_demand]
        status = "draining" if traffic.draining else "loading" if waiting else "ready"
        body = {"status": status, "engines": dict(engines)}
        return JSONResponse(body, status_code=200 if status == "ready" else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        await app.state.count_engines()
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    description = describe()

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(description)


async def _engines(readiness: Readiness, settings: ServeSettings) -> Mapping[str, int]:
    """Return the engines per model; where nobody says so in time, there are none."""
    try:
        async with asyncio.timeout(_READINESS_SECONDS):
            return await readiness()
    except TimeoutError:
        return dict.fromkeys(settings.model_names(), 0)


def _add_page(app: FastAPI) -> None:
    def serve(file: PageFile) -> Callable[[], Awaitable[Response]]:
        async def page() -> Response:
            return Response(file.content, headers={"content-type": file.content_type, **PAGE_HEADERS})

        return page

    for path, file in page_files().items():
        app.get(path)(serve(file))


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
