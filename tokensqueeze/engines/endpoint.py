"""Completions from an OpenAI-compatible server, with the tokens that it counts itself."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokensqueeze.config import EndpointSettings
from tokensqueeze.errors import EngineError, MissingPackageError

if TYPE_CHECKING:
    from openai import OpenAI

INSTALL = "pip install 'tokensqueeze[endpoint]'"


@dataclass(frozen=True)
class EndpointCompletion:
    """One completion; token counts are the server's own, None where it does not tell."""

    reasoning: str | None
    """The thinking, where the server returns it apart from the answer."""
    content: str
    finish_reason: str
    num_tokens: int | None
    """Reasoning and answer together."""
    reasoning_tokens: int | None


class EndpointClient:
    """Talks to one server under one model name; may be used by several threads at once."""

    def __init__(self, settings: EndpointSettings, model: str, api_key: str | None):
        self._settings, self._model = settings, model
        self._client = _client(settings, api_key)

    def complete(self, prompt: str, *, max_tokens: int, temperature: float, top_p: float, seed: int) -> EndpointCompletion:
        """Ask for the completion of one user message; `temperature` 0 is greedy.

        What may pass (a lost connection, 429, 5xx) is asked again. Raises `EngineError` for what doesn't.
        """
        with_errors = _Errors(self._settings)
        with with_errors:
            answer = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                # Servers take 32 bits, some of them signed.
                seed=seed % 2**31,
            )
        if not answer.choices:
            raise EngineError(f"endpoint.url: {self._settings.url}: an answer without a choice; is it a chat endpoint?")
        choice, usage = answer.choices[0], answer.usage
        details = usage.completion_tokens_details if usage else None
        return EndpointCompletion(
            reasoning=_reasoning(choice.message),
            content=choice.message.content or "",
            finish_reason=choice.finish_reason or "stop",
            num_tokens=usage.completion_tokens if usage else None,
            reasoning_tokens=details.reasoning_tokens if details else None,
        )


def served_model(settings: EndpointSettings, api_key: str | None) -> str:
    """Return the name to ask for: the one that is set, which the server must have, or the server's only one.

    Raises `EngineError` where the server can't be reached, or has another model or several.
    """
    with _Errors(settings):
        names = [model.id for model in _client(settings, api_key).models.list()]
    if settings.model is None and len(names) == 1:
        return names[0]
    if settings.model in names:
        return str(settings.model)
    given = "endpoint.model is not set" if settings.model is None else f"endpoint.model: {settings.model}: not there"
    raise EngineError(f"{given}; {settings.url} serves {', '.join(names) or 'no model'}")


def api_key(settings: EndpointSettings) -> str | None:
    return os.environ.get(settings.api_key_variable) or None


class _Errors:
    """Turns what the client raises into one line that names the server."""

    def __init__(self, settings: EndpointSettings):
        self._settings = settings

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None:
            return
        import openai

        where = f"endpoint.url: {self._settings.url}"
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                raise EngineError(
                    f"{where}: the key was refused ({error.status_code}); put it into the environment variable "
                    f"{self._settings.api_key_variable}, or name another with endpoint.api_key_variable"
                ) from error
            case openai.APITimeoutError():
                raise EngineError(
                    f"{where}: no answer within endpoint.timeout_seconds = {self._settings.timeout_seconds:g}; raise it, or "
                    "lower decoding.max_tokens or endpoint.concurrency"
                ) from error
            case openai.APIConnectionError():
                raise EngineError(f"{where}: no server answers there ({error.__cause__ or error})") from error
            case openai.NotFoundError():
                raise EngineError(f"{where}: 404: {error.message}; does the address end as the API's does, in /v1?") from error
            case openai.APIStatusError():
                raise EngineError(f"{where}: {error.status_code}: {error.message}") from error
            case openai.APIError():
                raise EngineError(f"{where}: not an OpenAI-compatible answer ({error})") from error


def _reasoning(message: Any) -> str | None:
    """vLLM, SGLang and DeepSeek call it `reasoning_content`, newer vLLM and others `reasoning`."""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    return reasoning if isinstance(reasoning, str) and reasoning else None


def _client(settings: EndpointSettings, api_key: str | None) -> "OpenAI":
    try:
        from openai import OpenAI
    except ImportError as error:
        raise MissingPackageError(f"endpoint.url: evaluating a server needs the openai package: {INSTALL}") from error
    return OpenAI(
        base_url=settings.url,
        # The client insists on one; servers without keys ignore it.
        api_key=api_key or "none",
        timeout=settings.timeout_seconds,
        max_retries=settings.max_retries,
    )
