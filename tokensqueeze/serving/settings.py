"""The server's settings: which models, for whom, within which limits; from a TOML file or `tokensqueeze serve`'s options."""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from tokensqueeze.config import CloseText, Day, EngineSettings, ModelSettings
from tokensqueeze.errors import SettingsError
from tokensqueeze.settings_file import Section, check_section, mistakes_text, override_settings, read_settings_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w./:-]*")


class ReplicaSettings(Section):
    """How many engines stand behind a model's name; each has `engine.max_batch_size` places."""

    min: int = Field(default=1, ge=0)
    max: int | None = Field(default=None, ge=1)
    """Default: `min`, which is no autoscaling; 1 where `min` is 0: an engine that is started when somebody asks."""
    load: float = Field(default=0.75, gt=0)
    """Requests per place, running and waiting, that autoscaling aims at: above it replicas are added."""
    upscale_delay_seconds: float = Field(default=10, ge=0)
    downscale_delay_seconds: float = Field(default=300, ge=0)
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    """Per replica of the transformers engine; a vLLM replica takes `engine.tensor_parallel_size` GPUs."""


class ServedModel(ModelSettings):
    name: str | None = None
    """What clients ask for; default: the directory's name, or its parent's where it is called `model`."""
    reasoning: bool | None = None
    """Whether it thinks before it answers; default: whether its chat template opens the thinking, or knows `think_end`."""
    engine: EngineSettings = EngineSettings()
    replicas: ReplicaSettings = ReplicaSettings()

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and not _MODEL_NAME.fullmatch(value):
            raise ValueError("letters, digits and . _ - / : only, a letter or digit first")
        return value


class KeySettings(Section):
    """A key that opens the server; only its SHA-256 is kept. `tokensqueeze serve-key NAME` makes one."""

    name: str = Field(min_length=1)
    """Stands in the access log and in the metrics."""
    sha256: str
    """SHA-256 of the key, in hexadecimal."""
    expires: Day | None = None
    """The last day on which it is valid, UTC."""
    max_concurrency: int | None = Field(default=None, ge=1)
    """Instead of `limits.max_concurrency`."""

    @field_validator("sha256")
    @classmethod
    def _digest(cls, value: str) -> str:
        if not _SHA256.fullmatch(value.lower()):
            raise ValueError("64 hexadecimal digits, which `tokensqueeze serve-key NAME` prints; never the key itself")
        return value.lower()


class LimitSettings(Section):
    max_body_bytes: int = Field(default=1_048_576, ge=1)
    body_timeout_seconds: float = Field(default=10, gt=0)
    """Time a client has to send its request's body."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Default: the model's context, less one token for the answer."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The most tokens, reasoning and answer together, of one choice; default: what the context has room for."""
    max_choices: int = Field(default=8, ge=1)
    """Completions of one request: `n` times its prompts."""
    max_stop_texts: int = Field(default=16, ge=1)
    max_concurrency: int = Field(default=64, ge=1)
    """Choices that one key may have under way, waiting ones included."""
    max_queued: int = Field(default=256, ge=1)
    """Choices, of all keys, that may wait for their first token."""
    retry_after_seconds: int = Field(default=1, ge=1)
    """What a client that was turned away (429, 503) is told to wait."""
    request_timeout_seconds: float = Field(default=600, gt=0)
    """From a request's arrival to the end of its answer."""


EffortBudget = Annotated[float, Field(ge=0)]


class ThinkingSettings(Section):
    """Thinking budgets: at the budget the thinking is closed, and the model answers (arXiv 2501.19393)."""

    low: EffortBudget = 1 / 32
    """What `reasoning_effort: low` means: a share of the model's context length if it is below 1, tokens otherwise."""
    medium: EffortBudget = 1 / 8
    high: EffortBudget = 1 / 2
    default_budget: int | None = Field(default=None, ge=0)
    """Tokens of thinking for a request that names neither a budget nor an effort; default: no budget."""
    close_text: CloseText = "\n{think_end}\n\n"
    """What is put behind the budget's last token; `{think_end}` stands for the model's `think_end`."""


class ServeSettings(Section):
    models: list[ServedModel] = Field(min_length=1)
    compare: list[str] = Field(default=[], max_length=2)
    """Names of the base and the squeezed model that the page at `/` shows side by side; default: the first two models."""
    host: str = "127.0.0.1"
    """Under `serve deploy` the file's `http_options` say where to listen, instead of this and `port`."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 picks a free one."""
    keys: list[KeySettings] = Field(default=[])
    """Without any, one is made at the start, and only this machine is listened to."""
    require_key: bool = True
    """False opens the server to every program on this machine; refused for any other address."""
    limits: LimitSettings = LimitSettings()
    thinking: ThinkingSettings = ThinkingSettings()
    stream_interval_seconds: float = Field(default=0.05, ge=0)
    """Tokens of a stream that come faster than this travel together; the first is never kept back."""
    resumes: int = Field(default=2, ge=0)
    """How often a completion whose replica died is taken up by another, where it was."""
    drain_seconds: float = Field(default=60, ge=0)
    """What requests under way are given to end when the server is told to stop."""
    access_log: str | None = None
    """File for one line of JSON per request; default: standard error."""
    log_prompts: bool = False
    """Put prompts and answers into the access log too."""

    def model_names(self) -> list[str]:
        return [model.name or default_name(model.path) for model in self.models]


def serve_settings(
    file: Path | None,
    *,
    model: str | None,
    base: str | None,
    name: str | None,
    each: Mapping[str, Mapping[str, Any]],
    server: Mapping[str, Any],
    overrides: Sequence[str],
) -> ServeSettings:
    """Return the settings of `tokensqueeze serve`: a file's, with what the command line says over them.

    `each` is laid over every model, `server` over the server's own settings; None leaves what is there. Raises
    `SettingsError`.
    """
    values: dict[str, Any] = read_settings_file(file) if file else {}
    if model:
        named = {"name": name} if name else {}
        values["models"] = [*([{"path": base, "name": _base_name(base, name or default_name(model))}] if base else [])]
        values["models"].append({"path": model, **named})
    elif base or name:
        raise SettingsError(f"{'--base' if base else '--name'}: is of a MODEL, and none is named")
    elif not file:
        raise SettingsError("MODEL: missing; name a model directory, demo, or a file with --settings")
    listed = values.get("models")
    for served in listed if isinstance(listed, list) else []:
        for section, given in each.items():
            said = {key: value for key, value in given.items() if value is not None}
            # What is no table here is told when all is checked.
            if said and isinstance(served, dict) and isinstance(served.setdefault(section, {}), dict):
                served[section] |= said
    values |= {key: value for key, value in server.items() if value is not None}
    override_settings(values, overrides)
    return check_serve_settings(values)


def _base_name(path: str, squeezed: str) -> str:
    name = default_name(path)
    return f"{name}-base" if name == squeezed else name


def default_name(path: str) -> str:
    """Return a name for a model directory: its own, or its parent's where it is called `model`."""
    folder = Path(path)
    name = folder.resolve().parent.name if folder.name == "model" else folder.resolve().name
    return re.sub(r"[^\w.-]+", "-", name) or "model"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_serve_settings(values: dict[str, Any]) -> ServeSettings:
    """Return the settings. Raises `SettingsError` with every mistake, each with its key."""
    settings = check_section(ServeSettings, values)
    clashes = list(_clashes(settings))
    if clashes:
        raise SettingsError(mistakes_text(clashes))
    return settings


def _clashes(settings: ServeSettings) -> Iterable[str]:
    names = settings.model_names()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield f"models: several are called {', '.join(twice)}; give each a name of its own"
    for name in settings.compare:
        if name not in names:
            yield f"compare: {name}: no such model; there are {', '.join(names)}"
    keys = [key.name for key in settings.keys]
    if len(set(keys)) < len(keys):
        yield "keys: several have the same name; the access log could not tell them apart"
    if not is_loopback(settings.host):
        if not settings.require_key:
            yield f"require_key: false, and host is {settings.host}: anybody who reaches this machine could use it"
        elif not settings.keys:
            yield f"host: {settings.host} can be reached from elsewhere, so it needs a key: `tokensqueeze serve-key NAME`"
    for index, model in enumerate(settings.models):
        if model.replicas.max is not None and model.replicas.max < model.replicas.min:
            yield f"models.{index}.replicas.max: {model.replicas.max} is below min, {model.replicas.min}"
