"""A request's body as a checked model, or a 400 that names the field, the value and the way out."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tokensqueeze.serving.api_errors import ApiError

_MOST_NAMES = 256
"""In one object: more would each be a mistake of its own, and take seconds to tell."""
_MOST_BRACKETS = 65_536
"""Hundreds of thousands of small lists take seconds to build, whatever is said about them then."""
_SHOWN = 60
"""Signs of a value that an error repeats."""

AnyRequest = TypeVar("AnyRequest", bound=BaseModel)


def read_request(body: bytes, kind: type[AnyRequest]) -> AnyRequest:
    """Raises `ApiError` (400) for what is not JSON, and for fields that are missing, unknown or out of range."""
    values = _parsed(body)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_context=False), values) from None


def _parsed(body: bytes) -> Any:
    """Return the JSON. Pydantic reads it too, but lets pass a name that stands twice, of which each reader takes another."""
    if body.count(b"[") + body.count(b"{") > _MOST_BRACKETS:
        message = f"The request's body has more than {_MOST_BRACKETS} opening brackets. Send fewer lists, objects or brackets."
        raise ApiError(400, message, code="invalid_value")
    try:
        return json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        message = f"The request's body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}. Send JSON in UTF-8."
    except RecursionError:
        message = "The request's body is nested too deeply. Send the request's fields alone."
    except json.JSONDecodeError as error:
        message = f"The request's body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
    except ValueError as error:  # numbers of thousands of digits, and what the two functions below refuse
        message = f"The request's body is not JSON: {str(error).partition(';')[0]}."
    raise ApiError(400, message, code="invalid_json") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MOST_NAMES:
        raise ValueError(f"an object has {len(pairs)} names, and {_MOST_NAMES} are the most")
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {_shown(twice)} stands twice in one object")
    return values


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number in JSON")


def _refusal(mistakes: Sequence[ErrorDetails], values: Any) -> ApiError:
    first = mistakes[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The request's body is not JSON: {first['msg']}.", code="invalid_json")
    param = _path(first["loc"], values, missing=first["type"] == "missing")
    more = f" ({len(mistakes) - 1} more like this)" if len(mistakes) > 1 else ""
    match first["type"]:
        case "missing":
            what = "is missing; add it"
        case "extra_forbidden":
            what = "is no field that this server knows; leave it out"
        case _:
            told = first["msg"].removeprefix("Value error, ")
            what = f"is {_shown(first['input'])}: {told[:1].lower()}{told[1:]}"
    return ApiError(400, f"{param or 'The body'} {what}{more}.", param=param, code="invalid_value")


def _path(location: Sequence[int | str], values: Any, *, missing: bool) -> str | None:
    """Return the place of a mistake as a path of the request, without the kinds of a union that pydantic puts into it."""
    path: list[str] = []
    node = values
    for index, part in enumerate(location):
        inside = (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int))
        if inside:
            node = node[part]  # type: ignore[index]
        if inside or (missing and index == len(location) - 1):
            path.append(str(part)[:_SHOWN])
    return ".".join(path) or None


def _shown(value: Any) -> str:
    # A surrogate alone, which JSON can escape but UTF-8 can't hold, must not break the answer.
    text = json.dumps(_beginning(value), ensure_ascii=True, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _beginning(value: Any, depth: int = 3) -> Any:
    """Return as much of a value as an error can show: writing all of a long one takes seconds."""
    if isinstance(value, str):
        return value[: _SHOWN + 1]
    if not isinstance(value, list | dict):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, list):
        return [_beginning(item, depth - 1) for item in value[:_SHOWN]]
    return {name[: _SHOWN + 1]: _beginning(item, depth - 1) for name, item in islice(value.items(), _SHOWN)}
