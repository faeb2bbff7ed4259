"""The embedded default: a tiny reasoning model that ships with the package, its problems, and the recipe that made it."""

from importlib.resources import files
from pathlib import Path


def settings_file() -> Path:
    """Return the settings of `tokensqueeze demo`, which may be copied and changed."""
    return Path(str(files("tokensqueeze.demo") / "settings.toml"))
