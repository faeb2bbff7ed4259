"""A token of its own for the Ray that a command starts, so that nobody else on the machine can run code on it.

Ray reads these variables when it is first imported, so this must come before; by itself Ray keeps one token per user, in a
file that others can read.
"""

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "RAY_ADDRESS")


@contextmanager
def private_ray_token() -> Iterator[None]:
    """Set the token for as long as the context lasts; the user's own choice, or a cluster's, stands."""
    if "ray" in sys.modules or any(name in os.environ for name in _NAMES):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tokensqueeze-") as folder:
        path = Path(folder) / "token"
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name in ours:
                os.environ.pop(name, None)
