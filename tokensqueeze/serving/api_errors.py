"""Errors as OpenAI's API words them: a status, and {"error": {"message", "type", "param", "code"}}."""

import json
import logging
import traceback
from typing import Any

from tokensqueeze.errors import EngineError

_log = logging.getLogger(__name__)
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """What a client is told; the message names the thing, the value and the way out, and holds nothing of another client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
    ):
        """`allow`: methods that the path takes, where the request's was another."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.allow = retry_after, allow

    @property
    def headers(self) -> dict[str, str]:
        headers = {
            "Retry-After": None if self.retry_after is None else str(self.retry_after),
            "WWW-Authenticate": "Bearer" if self.status == 401 else None,
            "Allow": self.allow,
        }
        return {name: value for name, value in headers.items() if value is not None}

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def json(self) -> bytes:
        return json.dumps(self.body(), separators=(",", ":")).encode()


def told_to_client(error: Exception, request_id: str, *, retry_after: int) -> ApiError:
    """Return what a client is told of an error; what it is not told is logged, under the request's id and without texts."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        _log.warning("request %s: %s", request_id, error)
        message = f"The model's engines could not finish the request. Try again in {retry_after} s."
        return ApiError(503, message, code="engine_unavailable", retry_after=retry_after)
    # An unexpected error's message may repeat a prompt; the lines of code that led to it don't.
    places = "".join(traceback.format_tb(error.__traceback__))
    _log.error("request %s: %s\n%s", request_id, type(error).__name__, places)
    return ApiError(500, f"The server failed on this request; its log says more under {request_id}.", code="internal_error")
