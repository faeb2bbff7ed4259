"""Who may use the server: bearer keys, of which it knows only the SHA-256, each with a name."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from tokensqueeze.errors import SettingsError
from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.settings import KeySettings, ServeSettings, is_loopback

_PREFIX = "tsq-"
_RANDOM_BYTES = 32
_WAY_OUT = "Send the header `Authorization: Bearer KEY` with a key of this server's."


@dataclass(frozen=True)
class KeyHolder:
    """On whose behalf a request is served."""

    name: str
    max_concurrency: int | None = None
    """Instead of `limits.max_concurrency`."""


ANONYMOUS = KeyHolder("anonymous")


def new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def key_digest(key: str) -> str:
    """Return what `keys.sha256` of the settings holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The keys that open a server."""

    def __init__(self, keys: Sequence[KeySettings], *, require_key: bool = True, today: Callable[[], date] | None = None):
        """`today`: the date in UTC. Raises `SettingsError` where a key is required and there is none."""
        if require_key and not keys:
            raise SettingsError(
                "keys: none, and require_key is true: nobody could use the server; `tokensqueeze serve-key NAME`"
            )
        self._keys = tuple(keys)
        self._require_key = require_key
        self._today = today or (lambda: datetime.now(UTC).date())

    @classmethod
    def of(cls, settings: ServeSettings) -> "KeyRing":
        return cls(settings.keys, require_key=settings.require_key)

    @classmethod
    def for_start(cls, settings: ServeSettings) -> tuple["KeyRing", str | None]:
        """Return the keys of the settings or, where they name none and one is required, a new one with its text."""
        if settings.keys or not settings.require_key:
            return cls.of(settings), None
        key = new_key()
        return cls([KeySettings(name="start", sha256=key_digest(key))]), key

    def holder(self, headers: Iterable[tuple[bytes, bytes]]) -> KeyHolder:
        """Return whose key a request shows. Raises `ApiError` (401, 403) without a valid one."""
        if not self._require_key:
            _check_host(headers)
            return ANONYMOUS
        shown = hashlib.sha256(_bearer_key(headers)).hexdigest()
        # Every key is compared, and each in constant time: how long it takes says nothing about which came close.
        matching = [key for key in self._keys if hmac.compare_digest(shown, key.sha256)]
        if not matching:
            raise ApiError(401, f"The API key is not one of this server's. {_WAY_OUT}", code="invalid_api_key")
        key = matching[0]
        if key.expires is not None and self._today() > key.expires:
            message = f"The API key {key.name!r} was valid until {key.expires}. Ask whoever runs this server for a new one."
            raise ApiError(401, message, code="expired_api_key")
        return KeyHolder(key.name, key.max_concurrency)


def _bearer_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        problem = "There is no API key." if not values else "There are several Authorization headers."
        raise ApiError(401, f"{problem} {_WAY_OUT}", code="invalid_api_key")
    scheme, _, key = values[0].partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise ApiError(401, f"The Authorization header holds no bearer key. {_WAY_OUT}", code="invalid_api_key")
    return key.strip()


def _check_host(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse what a web page sends under a name of its own that leads to this machine (DNS rebinding)."""
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not is_loopback(_without_port(hosts[0])):
        message = "Without keys this server answers only to localhost, 127.0.0.1 and [::1]; use one of them, or a key."
        raise ApiError(403, message, code="host_not_allowed")


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
