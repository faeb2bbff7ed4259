"""Settings as TOML: read, overridden from the command line, and checked whole, every mistake listed at once with its key."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from tokensqueeze.errors import SettingsError

_CHOICES = ("selector", "rewriter", "objective")
"""The sections of which `name` picks one of several kinds."""


class Section(BaseModel):
    model_config = ConfigDict(
        # JSON, which fingerprints are made of, has no infinity.
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


AnySettings = TypeVar("AnySettings", bound=Section)


def read_settings_file(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file and lay `key.path=value` overrides over it; values are TOML, or else plain text.

    Raises `SettingsError` for a missing or malformed file or override.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; name an existing TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    override_settings(values, overrides)
    return values


def override_settings(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Lay `key.path=value` overrides over settings, in place. Raises `SettingsError` for a malformed one."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise SettingsError(f"--set {override}: write it as section.key=value")
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise SettingsError(f"--set {override}: {section!r} is a value, not a section")
        target[last] = _toml_value(text)


def check_section(kind: type[AnySettings], values: dict[str, Any]) -> AnySettings:
    """Return the settings, each checked by itself. Raises `SettingsError` that lists every mistake with its key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SettingsError(mistakes_text(_mistake(kind, detail) for detail in error.errors())) from None


def mistakes_text(mistakes: Iterable[str]) -> str:
    listed = list(mistakes)
    count = "1 mistake" if len(listed) == 1 else f"{len(listed)} mistakes"
    return f"the settings have {count}:" + "".join(f"\n  {mistake}" for mistake in listed)


def _mistake(kind: type[Section], detail: Any) -> str:
    """Put one of pydantic's errors as `key: what is wrong; the way out`."""
    location, given = detail["loc"], detail["input"]
    # Behind a choice, pydantic puts the name that was chosen; a user's key has none.
    key = ".".join(map(str, (*location[:1], *location[2:]) if location[0] in _CHOICES else location))
    match detail["type"]:
        case "extra_forbidden":
            known = _known_keys(kind, location[:-1])
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            return f"{key}: unknown setting; {hint}"
        case "missing":
            return f"{key}: missing; this setting has no default"
        case "union_tag_invalid":
            return f"{key}.name: {detail['ctx']['tag']!r} is not one of {detail['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"{key}.name: missing; it picks the kind"
        case _:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            # A key in an address is not for a log.
            return f"{key}: {message}; it is {re.sub(r'//[^/@ ]*@|[?].*', '…', repr(given))}"


def _known_keys(kind: type[Section], location: Sequence[Any]) -> list[str]:
    sections: list[Any] = [kind]
    for index, part in enumerate(location):
        if isinstance(part, int):
            continue  # a place in a list
        if index == 1 and location[0] in _CHOICES:
            sections = [section for section in sections if section.model_fields["name"].default == part]
        else:
            sections = _sections_of(sections[0].model_fields[part].annotation)
    return sorted(sections[0].model_fields)


def _sections_of(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_of(argument)]


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
