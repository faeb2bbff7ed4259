"""What the ingress knows of a served model: how its prompts are written, where it thinks and ends, what its card promises."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokensqueeze.engines.checkpoint import context_length, eos_token_ids, load_tokenizer, model_dir
from tokensqueeze.errors import ModelError
from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.protocol import Effort, Message
from tokensqueeze.serving.settings import ServedModel, ServeSettings
from tokensqueeze.serving.token_bytes import TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_QUESTION = [{"role": "user", "content": "How many?"}]


@dataclass(frozen=True)
class Prompt:
    text: str
    token_ids: tuple[int, ...]
    thinking: bool
    """Whether the completion begins with thinking: the model thinks, and the prompt does not end with closed thinking."""


@dataclass(frozen=True)
class ModelDefaults:
    """What holds where a request says nothing: the model's generation_config.json, as vLLM does it, else OpenAI's values."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class CardLengths:
    """Mean tokens of a completion, as the model card's front matter has them under `tokensqueeze`."""

    base: float | None = None
    squeezed: float | None = None


@dataclass(frozen=True)
class HostedModel:
    """Loads no weights."""

    name: str
    tokenizer: "PreTrainedTokenizerBase"
    token_bytes: TokenBytes
    context_length: int
    vocabulary_size: int
    """Ids from 0 up to this one are tokens."""
    think_end: str
    think_start: str | None
    is_reasoning: bool
    close_token_ids: tuple[int, ...]
    """What closes the thinking at its budget."""
    efforts: Mapping[Effort, int]
    """Tokens of thinking."""
    defaults: ModelDefaults
    lengths: CardLengths
    created: int
    """Unix time of its files."""

    @classmethod
    def load(cls, name: str, served: ServedModel, settings: ServeSettings) -> "HostedModel":
        """Read a model's folder, all but its weights. Raises `ModelError` for what is missing or malformed."""
        folder = model_dir(served.path)
        tokenizer, context = load_tokenizer(folder), context_length(folder)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            # A file may have been saved with limits from somebody's training.
            backend.no_truncation()
            backend.no_padding()
        thinking = settings.thinking
        think_start = _opening_of(served.think_end)
        reasoning = _thinks(folder, tokenizer, served.think_end, think_start) if served.reasoning is None else served.reasoning
        tags = frozenset({served.think_end, think_start} - {None})
        close_text = thinking.close_text.replace("{think_end}", served.think_end)
        return cls(
            name=name,
            tokenizer=tokenizer,
            token_bytes=TokenBytes(tokenizer, hidden=eos_token_ids(folder), shown=cast(frozenset[str], tags)),
            context_length=context,
            vocabulary_size=_vocabulary_size(folder, tokenizer),
            think_end=served.think_end,
            think_start=think_start,
            is_reasoning=reasoning,
            close_token_ids=tuple(_encode(tokenizer, close_text, special=False)),
            efforts={
                "low": _tokens(thinking.low, context),
                "medium": _tokens(thinking.medium, context),
                "high": _tokens(thinking.high, context),
            },
            defaults=_defaults(folder / "generation_config.json"),
            lengths=_card_lengths(folder / "README.md"),
            created=int((folder / "config.json").stat().st_mtime),
        )

    @property
    def base_length(self) -> float | None:
        return self.lengths.base

    @property
    def squeezed_length(self) -> float | None:
        return self.lengths.squeezed

    def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        """Put messages under the chat template. Raises `ApiError` (400) where the template refuses them."""
        try:
            text = _render(self.tokenizer, [_for_template(message) for message in messages])
        except Exception as error:  # a template is a program of the model's: it raises what it likes
            # What a template says of its own accord has no line number in it.
            reason = str(error) or type(error).__name__
            message = f"The chat template of {self.name} refuses these messages: {reason[:300]}. Change their roles or order."
            raise ApiError(400, message, param="messages", code="invalid_messages") from error
        # The template has written the special tokens; the tokenizer must not add its own.
        return self._prompt(text, _encode(self.tokenizer, text, special=False))

    def text_prompt(self, text: str) -> Prompt:
        return self._prompt(text, _encode(self.tokenizer, text, special=True))

    def token_prompt(self, token_ids: Sequence[int]) -> Prompt:
        """Raises `ApiError` (400) for ids that are no tokens of the model's."""
        wrong = next((token for token in token_ids if not 0 <= token < self.vocabulary_size), None)
        if wrong is not None:
            message = f"prompt: {wrong} is no token of {self.name}, whose ids go up to {self.vocabulary_size - 1}."
            raise ApiError(400, message, param="prompt", code="invalid_token_id")
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self._prompt(cast(str, text), token_ids)

    def _prompt(self, text: str, token_ids: Sequence[int]) -> Prompt:
        closed = text.rstrip().endswith(self.think_end)
        return Prompt(text, tuple(token_ids), thinking=self.is_reasoning and not closed)


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> str:
    return cast(str, tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _for_template(message: Message) -> dict[str, str]:
    """Return a message as templates know them: content is text, and there is no role `developer`."""
    content = message.content
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    others = {"name": message.name, "reasoning_content": message.reasoning_content}
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content} | {key: value for key, value in others.items() if value is not None}


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool) -> list[int]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Unlike the tokenizer itself, it may be called by several threads at once; and only batches let go of the interpreter,
        # which a megabyte of text would otherwise hold for a second.
        return backend.encode_batch_fast([text], add_special_tokens=special)[0].ids
    return tokenizer(text, add_special_tokens=special, verbose=False).input_ids


def _opening_of(think_end: str) -> str | None:
    """Return `<think>` for `</think>`: the closing tag without its slash."""
    return think_end.replace("/", "", 1) if "/" in think_end else None


def _thinks(folder: Path, tokenizer: "PreTrainedTokenizerBase", think_end: str, think_start: str | None) -> bool:
    """Tell by the chat template whether the model thinks; the tag may be in the vocabulary of one that never does."""
    templates = tokenizer.chat_template
    named = list(templates.values()) if isinstance(templates, dict) else [templates or ""]
    try:
        prompt = _render(tokenizer, _QUESTION).rstrip()
    except Exception as error:
        raise ModelError(f"{folder}: the chat template fails on a lone user message ({error}); mend the template") from error
    return any(think_end in template for template in named) or bool(think_start and prompt.endswith(think_start))


def _tokens(effort: float, context: int) -> int:
    return int(effort * context) if effort < 1 else int(effort)


def _vocabulary_size(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> int:
    config = _read_json(folder / "config.json")
    embedded = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return min(len(tokenizer), embedded) if isinstance(embedded, int) else len(tokenizer)


def _defaults(path: Path) -> ModelDefaults:
    named = _read_json(path) if path.is_file() else {}
    bounds = {"temperature": (0, 2), "top_p": (1e-9, 1)}
    given = {key: value for key in bounds if (value := named.get(key)) is not None}
    for key, value in given.items():
        low, high = bounds[key]
        if not _is_number(value) or not low <= value <= high:
            raise ModelError(f"{path}: {key} is {value!r}; it must be a number from {low:g} to {high}")
    return ModelDefaults(**{key: float(value) for key, value in given.items()})


def _card_lengths(path: Path) -> CardLengths:
    """Read what `tokensqueeze` exported with the model; a card without it, or no card, promises nothing."""
    try:
        front_matter = _FRONT_MATTER.match(path.read_text(errors="replace")) if path.is_file() else None
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror}); mend or delete the model card") from error
    if front_matter is None or not re.search(r"^tokensqueeze:", front_matter[1], re.MULTILINE):
        return CardLengths()
    import yaml

    try:
        card = yaml.safe_load(front_matter[1])
    except yaml.YAMLError as error:
        raise ModelError(f"{path}: its front matter is not valid YAML ({' '.join(str(error).split())}); mend it") from error
    figures = card.get("tokensqueeze") if isinstance(card, dict) else None
    if not isinstance(figures, dict):
        raise ModelError(f"{path}: tokensqueeze is {figures!r}; it must have base_length and squeezed_length under it")
    return CardLengths(_length(path, figures, "base_length"), _length(path, figures, "squeezed_length"))


def _length(path: Path, figures: Mapping[str, Any], key: str) -> float | None:
    value = figures.get(key)
    if value is not None and (not _is_number(value) or value <= 0):
        raise ModelError(f"{path}: tokensqueeze.{key} is {value!r}; it must be a positive number of tokens")
    return None if value is None else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: can't be read as JSON ({error}); copy the file from the model again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: must hold one JSON object; copy the file from the model again")
    return values
