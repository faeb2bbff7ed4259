"""The API in OpenAPI's words: each route, what it takes, and everything it may answer."""

from typing import Any

from pydantic.json_schema import models_json_schema

from tokensqueeze import __version__
from tokensqueeze.serving.page_files import page_files
from tokensqueeze.serving.protocol import ChatCompletionRequest, CompletionRequest
from tokensqueeze.serving.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ModelEntry,
    ModelList,
)

OPEN_ROUTES = frozenset({"/health", "/ready", "/openapi.json"})
"""Routes that need no key, besides the page's."""

_ANY = "validation"
"""Pydantic's mode in which a field with a default may be absent, as those without a value are in answers too."""
_MODELS = (
    ChatCompletionRequest,
    ChatCompletion,
    ChatCompletionChunk,
    CompletionRequest,
    Completion,
    CompletionChunk,
    ModelList,
    ModelEntry,
)
_TEXT = {"type": "string"}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {"message": _TEXT, "type": _TEXT, "param": _NULLABLE_TEXT, "code": _NULLABLE_TEXT},
        }
    },
}
_READINESS = {
    "type": "object",
    "required": ["status", "engines"],
    "properties": {
        "status": {"enum": ["ready", "loading", "draining"]},
        "engines": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
    },
}
_HEALTH = {"type": "object", "required": ["status"], "properties": {"status": {"const": "alive"}}}
_ERRORS = {
    400: "The request is malformed, or asks for what the model or the limits have no room for.",
    401: "No key, an unknown one, or one that has expired.",
    403: "A server without keys was called by a name that is not this machine's.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body is not said to be JSON in UTF-8.",
    429: "Too much is under way; `Retry-After` says when to come again.",
    500: "The server failed.",
    503: "No engine could finish the request, or the server is stopping.",
    504: "The answer took too long.",
}
_GUARDED = (401, 403, 500)


def describe() -> dict[str, Any]:
    """Return the OpenAPI description of every route but its own."""
    _, schemas = models_json_schema([(model, _ANY) for model in _MODELS], ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tokensqueeze",
            "version": __version__,
            "description": "OpenAI's API, with reasoning apart from the answer, and budgets for thinking.",
        },
        "paths": {
            "/v1/chat/completions": {
                "post": _generates("Answer a chat", ChatCompletionRequest, ChatCompletion, ChatCompletionChunk)
            },
            "/v1/completions": {"post": _generates("Continue a text", CompletionRequest, Completion, CompletionChunk)},
            "/v1/models": {"get": _guarded("List the models", _json(_ref(ModelList)))},
            "/v1/models/{model}": {
                "get": {
                    **_guarded("Describe a model", _json(_ref(ModelEntry)), 404),
                    "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                }
            },
            "/metrics": {"get": _guarded("Numbers for Prometheus", {"text/plain": {"schema": _TEXT}})},
            "/health": {"get": _open("Whether the server is alive", _json(_HEALTH))},
            "/ready": {
                "get": {
                    **_open("Whether every model has an engine", _json(_READINESS)),
                    "responses": {
                        "200": _response("Every model has an engine.", _json(_READINESS)),
                        "503": _response("A model has none, or the server is stopping.", _json(_READINESS)),
                    },
                }
            },
            **{
                path: {"get": _open("A file of the page", {file.content_type.partition(";")[0]: {"schema": _TEXT}})}
                for path, file in page_files().items()
            },
        },
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _generates(summary: str, request: type, answer: type, chunk: type) -> dict[str, Any]:
    content = _json(_ref(answer)) | {"text/event-stream": {"schema": _event(chunk)}}
    return {
        **_guarded(summary, content, *_ERRORS),
        "requestBody": {"required": True, "content": _json(_ref(request))},
    }


def _event(chunk: type) -> dict[str, Any]:
    """Describe one server-sent event of a stream, not the whole of them."""
    data = f"{chunk.__name__} or, in its place and last, Error, as JSON; behind a whole answer [DONE]."
    return {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "description": data}}}


def _guarded(summary: str, content: dict[str, Any], *errors: int) -> dict[str, Any]:
    statuses = sorted({*_GUARDED, *errors})
    refused = {str(status): _response(_ERRORS[status], _json({"$ref": "#/components/schemas/Error"})) for status in statuses}
    return {"summary": summary, "security": [{"key": []}], "responses": {"200": _response("As asked.", content), **refused}}


def _open(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "security": [], "responses": {"200": _response("As asked.", content)}}


def _response(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": content}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(model: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
