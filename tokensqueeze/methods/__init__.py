"""Named recipes: a method is a selector, a rewriter and an objective over the same traces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokensqueeze.config import Settings, check_settings
from tokensqueeze.errors import SettingsError
from tokensqueeze.methods import shortest_sft, tokensqueeze, tokensqueeze_reliable
from tokensqueeze.methods.method import Method
from tokensqueeze.settings_file import read_settings_file

METHODS: dict[str, Method] = {
    method.name: method for method in (tokensqueeze.METHOD, tokensqueeze_reliable.METHOD, shortest_sft.METHOD)
}


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read and check a run's settings file. Raises `SettingsError` that lists every mistake."""
    return settings_from(read_settings_file(path, overrides))


def settings_from(values: dict[str, Any]) -> Settings:
    """Fill in what the method says where the settings say nothing or name no other part, then check the whole."""
    name = values.get("method", "tokensqueeze")
    if not isinstance(name, str) or name not in METHODS:
        raise SettingsError(f"method: {name!r} is not a method; choose from {', '.join(METHODS)}")
    filled = dict(values)
    method = METHODS[name]
    for part, default in (
        ("selector", method.selector),
        ("rewriter", method.rewriter),
        ("objective", method.objective),
    ):
        own = values.get(part, {})
        if isinstance(own, dict) and own.get("name", default.name) == default.name:
            filled[part] = default.model_dump() | own
    return check_settings(filled)
