"""What is remembered of one request for the access log and the metrics: names, counts and times, no text unless asked for."""

import time
from dataclasses import dataclass, field


@dataclass
class RequestRecord:
    """Filled in while the request is served; every duration in seconds from its arrival, by the monotonic clock."""

    request_id: str
    route: str
    """The path's template, such as `/v1/chat/completions`: never what a client made up."""
    method: str = "POST"
    arrived: float = field(default_factory=time.monotonic)
    arrived_at: float = field(default_factory=time.time)
    """Unix time."""
    key: str | None = None
    """Name of the key that was shown."""
    model: str | None = None
    """Only names of models that are served."""
    stream: bool = False
    choices: int = 0
    status: int | None = None
    """HTTP status; 499 where the client went away before the end."""
    error: str | None = None
    """Code or type of the error that the client was told."""
    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    """Of all choices, the closing tag included."""
    answer_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    completion_lengths: list[int] = field(default_factory=list)
    """Tokens of each choice that ended by itself or at a limit."""
    thinking_closed: int = 0
    """Choices whose thinking was closed at a budget."""
    resumed: int = 0
    """How often a choice was taken up by another replica."""
    first_token_seconds: float | None = None
    inter_token_seconds: list[tuple[float, int]] = field(default_factory=list)
    """For each piece behind a choice's first: seconds per token, and tokens."""
    duration_seconds: float | None = None
    prompt: str | None = None
    """Set only if the settings say `log_prompts`."""
    answer: str | None = None

    def elapsed(self) -> float:
        return time.monotonic() - self.arrived
