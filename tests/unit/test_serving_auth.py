"""Keys: made, hashed, compared, expired; and no key at all, for this machine only."""

import hashlib
from datetime import date

import pytest

from tokensqueeze.errors import SettingsError
from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.auth import ANONYMOUS, KeyHolder, KeyRing, key_digest, new_key
from tokensqueeze.serving.settings import KeySettings, ServeSettings, check_serve_settings

MODELS = [{"path": "demo", "name": "demo"}]


def settings_with(*keys: KeySettings, require_key: bool = True) -> ServeSettings:
    values = {"models": MODELS, "keys": [key.model_dump() for key in keys], "require_key": require_key}
    return check_serve_settings(values)


def shown(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"localhost"), *((b"authorization", value.encode()) for value in values)]


def refusal(ring: KeyRing, headers: list[tuple[bytes, bytes]]) -> ApiError:
    with pytest.raises(ApiError) as refused:
        ring.holder(headers)
    return refused.value


def test_a_digest_is_the_sha256_of_the_key():
    assert key_digest("abc") == hashlib.sha256(b"abc").hexdigest()
    assert key_digest("abc").startswith("ba7816bf")  # FIPS 180-2's own example


def test_new_keys_differ_and_hold_at_least_32_random_bytes():
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(key.startswith("tsq-") and len(key) >= 4 + 43 for key in keys)  # 32 bytes are 43 signs of base64


def test_the_holder_of_a_key_is_known_by_its_name_and_its_own_limit():
    first = KeySettings(name="ann", sha256=key_digest("ann's"))
    second = KeySettings(name="bob", sha256=key_digest("bob's").upper(), max_concurrency=3)
    ring = KeyRing.of(settings_with(first, second))
    assert ring.holder(shown("Bearer ann's")) == KeyHolder("ann", None)
    assert ring.holder(shown("bearer  bob's ")) == KeyHolder("bob", 3)


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("Bearer wrong",),
        ("Bearer ",),
        ("Bearer",),
        ("Basic YW5uOmFubg==",),
        ("ann's",),
        ("Bearer ann's more",),
        ("Bearer " + key_digest("ann's"),),
        ("Bearer ann's", "Bearer ann's"),
        ("Bearer kéy \x00",),
    ],
)
def test_a_missing_or_wrong_key_is_refused(values: tuple[str, ...]):
    ring = KeyRing([KeySettings(name="ann", sha256=key_digest("ann's"))])
    error = refusal(ring, shown(*values))
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert "Authorization: Bearer KEY" in error.message
    assert "ann" not in error.message
    assert error.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_is_valid_through_its_last_day_and_not_behind_it():
    key = KeySettings(name="ann", sha256=key_digest("ann's"), expires=date(2026, 3, 31))
    assert KeyRing([key], today=lambda: date(2026, 3, 31)).holder(shown("Bearer ann's")).name == "ann"
    error = refusal(KeyRing([key], today=lambda: date(2026, 4, 1)), shown("Bearer ann's"))
    assert (error.status, error.code) == (401, "expired_api_key")
    assert "2026-03-31" in error.message


def test_a_start_without_keys_makes_one():
    ring, key = KeyRing.for_start(settings_with())
    assert key is not None
    assert ring.holder(shown(f"Bearer {key}")).name == "start"
    assert refusal(ring, shown(f"Bearer {new_key()}")).status == 401


def test_a_start_with_keys_or_without_need_of_any_makes_none():
    assert KeyRing.for_start(settings_with(KeySettings(name="ann", sha256=key_digest("ann's"))))[1] is None
    assert KeyRing.for_start(settings_with(require_key=False))[1] is None


def test_a_ring_that_nobody_could_open_is_a_mistake():
    with pytest.raises(SettingsError, match="serve-key"):
        KeyRing([])


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "127.0.0.2"])
def test_without_keys_whoever_calls_this_machine_by_its_own_name_is_let_in(host: str):
    ring = KeyRing([], require_key=False)
    assert ring.holder([(b"host", host.encode())]) == ANONYMOUS


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1:8000", "", "[::2]"])
def test_without_keys_a_web_page_that_calls_this_machine_by_a_name_of_the_pages_is_refused(host: str):
    error = refusal(KeyRing([], require_key=False), [(b"host", host.encode())])
    assert (error.status, error.code) == (403, "host_not_allowed")
