"""How much may be under way at once: choices per key, and choices of all keys that wait for their first token."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.auth import KeyHolder
from tokensqueeze.serving.settings import LimitSettings


@dataclass
class Traffic:
    """HTTP requests of a server."""

    in_flight: int = 0
    draining: bool = False
    """New requests for completions are turned away; those under way go on."""


@dataclass(frozen=True)
class Load:
    """Choices: completions, of which a request has `n` times its prompts."""

    running: int
    """Under way, those that wait included."""
    queued: int
    """Those of them that wait for their first token."""


class Admitted:
    """A request's place; `first_token` is called once per choice."""

    def __init__(self, admission: "Admission", choices: int):
        self._admission = admission
        self.choices = choices
        self.waiting = choices
        """Choices whose first token has not come."""

    def first_token(self) -> None:
        if self.waiting > 0:
            self.waiting -= 1
            self._admission.changed(queued=-1)


class Admission:
    """Counts of one event loop; what is over a limit is turned away at once, for the client to come again."""

    def __init__(self, limits: LimitSettings, *, on_change: Callable[[Load], None] | None = None):
        self._limits = limits
        self._on_change = on_change
        self._per_key: Counter[str] = Counter()
        self._running = self._queued = 0

    @property
    def load(self) -> Load:
        return Load(self._running, self._queued)

    @contextmanager
    def admit(self, holder: KeyHolder, choices: int) -> Iterator[Admitted]:
        """Hold a place for a request's choices. Raises `ApiError`: 429 where there is none, 400 where there never will be."""
        self._check(holder, choices)
        self._per_key[holder.name] += choices
        self.changed(running=choices, queued=choices)
        admitted = Admitted(self, choices)
        try:
            yield admitted
        finally:
            self._per_key[holder.name] -= choices
            self.changed(running=-choices, queued=-admitted.waiting)
            admitted.waiting = 0

    def changed(self, *, running: int = 0, queued: int = 0) -> None:
        self._running += running
        self._queued += queued
        if self._on_change is not None:
            self._on_change(self.load)

    def _check(self, holder: KeyHolder, choices: int) -> None:
        limits, running = self._limits, self._per_key[holder.name]
        of_key = holder.max_concurrency or limits.max_concurrency
        most = min(of_key, limits.max_queued)
        if choices > most:
            message = f"The request asks for {choices} choices; this key may have {most} under way. Ask for fewer at a time."
            raise ApiError(400, message, param="n", code="too_many_choices")
        retry_after = limits.retry_after_seconds
        if running + choices > of_key:
            message = (
                f"Of this key's choices {running} are under way and the request asks for {choices}; it may have {of_key}. "
                f"Wait for others to end, or try again in {retry_after} s."
            )
            raise ApiError(429, message, code="concurrency_limit", retry_after=retry_after)
        if self._queued + choices > limits.max_queued:
            message = f"{self._queued} choices wait for their first token; the server lets {limits.max_queued} wait. "
            raise ApiError(429, f"{message}Try again in {retry_after} s.", code="queue_full", retry_after=retry_after)
