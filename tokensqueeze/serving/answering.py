"""A client's request becomes requests to an engine; whatever can be wrong with it is found before anything is generated."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokensqueeze.serving.answer_shapes import AnswerShape, ChatShape, TextShape
from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.choice_stream import Choice
from tokensqueeze.serving.completion_text import CompletionText, ReadingRules
from tokensqueeze.serving.generation import ServedRequest, ThinkingLimit, TokenSource
from tokensqueeze.serving.hosted_model import HostedModel, Prompt
from tokensqueeze.serving.prepared_answer import PreparedAnswer
from tokensqueeze.serving.protocol import ChatCompletionRequest, CompletionRequest
from tokensqueeze.serving.request_record import RequestRecord
from tokensqueeze.serving.responses import ModelEntry, ModelFacts, ModelList
from tokensqueeze.serving.settings import ServeSettings

_TEXT_MAX_TOKENS = 16
"""OpenAI's default of /v1/completions."""
_WHOLE_INTERVAL_SECONDS = 0.25
"""Tokens of an answer that nobody watches travel in larger pieces."""

_GREEDY_BELOW = 1e-5
"""A temperature that is greedy in all but name, and too small to divide by; vLLM draws the line there too."""


class Answering:
    """Knows the served models, by name, and their limits."""

    def __init__(self, models: Mapping[str, tuple[HostedModel, TokenSource]], settings: ServeSettings):
        self._models, self._settings = models, settings

    def model_list(self) -> ModelList:
        roles = _roles(self._settings.compare or list(self._models)[:2])
        return ModelList(data=[_entry(model, roles.get(name)) for name, (model, _) in self._models.items()])

    def prepare(self, body: ChatCompletionRequest | CompletionRequest, record: RequestRecord) -> PreparedAnswer:
        """Raises `ApiError` (400, 404) for whatever is wrong with the request."""
        model, source = self._find(body.model)
        record.model, record.stream = model.name, bool(body.stream)
        _check_together(body)
        plan = _Plan(
            max_tokens=self._max_tokens(body),
            budget=self._budget(model, body),
            stop_texts=self._stop_texts(body),
            n=body.n or 1,
        )
        record.choices = self._count_choices(body, plan.n)
        prompts = _prompts(model, body)
        for prompt in prompts:
            self._check_length(model, body, prompt)
        record.prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        if self._settings.log_prompts:
            record.prompt = "\n\n".join(prompt.text for prompt in prompts)
        each = [prompt for prompt in prompts for _ in range(plan.n)]
        seed = body.seed if body.seed is not None else secrets.randbits(63)
        streams = [
            Choice(
                index,
                self._request(model, body, prompt, plan, f"{record.request_id}-{index}", choice_seed(seed, index)),
                source,
                CompletionText(model.token_bytes.shown, _reading(model, body, prompt, plan)),
                record,
                log_answer=self._settings.log_prompts,
            )
            for index, prompt in enumerate(each)
        ]
        options = body.stream_options
        return PreparedAnswer(
            streams,
            _shape(model, body, record, thinking=prompts[0].thinking),
            record,
            usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
        )

    def _find(self, name: str) -> tuple[HostedModel, TokenSource]:
        if name not in self._models:
            message = f"The model {name[:100]!r} is not served here; there are {', '.join(self._models)}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._models[name]

    def _max_tokens(self, body: ChatCompletionRequest | CompletionRequest) -> int | None:
        """Return how many tokens a completion may have; none: what the context has room for."""
        newer = body.max_completion_tokens if isinstance(body, ChatCompletionRequest) else None
        asked, limit = body.max_tokens if newer is None else newer, self._settings.limits.max_completion_tokens
        if asked is None:
            # A text completion has OpenAI's default, or less.
            default = _TEXT_MAX_TOKENS if isinstance(body, CompletionRequest) else None
            return min((most for most in (default, limit) if most is not None), default=None)
        if limit is not None and asked > limit:
            param = "max_tokens" if newer is None else "max_completion_tokens"
            message = f"{param} is {asked}; this server gives {limit} tokens at most."
            raise ApiError(400, message, param=param, code="invalid_value")
        return asked

    def _budget(self, model: HostedModel, body: ChatCompletionRequest | CompletionRequest) -> int | None:
        if body.thinking_budget is not None and body.reasoning_effort is not None:
            message = "thinking_budget and reasoning_effort both set the budget of thinking; give one of them."
            raise ApiError(400, message, param="reasoning_effort", code="invalid_value")
        param = "reasoning_effort" if body.reasoning_effort else "thinking_budget" if body.thinking_budget is not None else None
        if param and not model.is_reasoning:
            message = f"{param}: {model.name} does not think before it answers; leave it out."
            raise ApiError(400, message, param=param, code="unsupported")
        if body.reasoning_effort:
            return model.efforts[body.reasoning_effort]
        return self._settings.thinking.default_budget if body.thinking_budget is None else body.thinking_budget

    def _stop_texts(self, body: ChatCompletionRequest | CompletionRequest) -> tuple[str, ...]:
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        most = self._settings.limits.max_stop_texts
        if len(stops) > most:
            raise ApiError(400, f"stop has {len(stops)} texts; this server takes {most} at most.", param="stop")
        return tuple(dict.fromkeys(stops))

    def _count_choices(self, body: ChatCompletionRequest | CompletionRequest, n: int) -> int:
        prompt = body.prompt if isinstance(body, CompletionRequest) else ""
        num_prompts = 1 if isinstance(prompt, str) or isinstance(prompt[0], int) else len(prompt)
        most = self._settings.limits.max_choices
        if n * num_prompts > most:
            of_prompts = f" for {num_prompts} prompts" if num_prompts > 1 else ""
            message = f"n is {n}{of_prompts}: {n * num_prompts} completions; this server gives {most} at most per request."
            raise ApiError(400, message, param="prompt" if n == 1 else "n", code="invalid_value")
        return n * num_prompts

    def _check_length(self, model: HostedModel, body: ChatCompletionRequest | CompletionRequest, prompt: Prompt) -> None:
        param = "messages" if isinstance(body, ChatCompletionRequest) else "prompt"
        num_tokens, own = len(prompt.token_ids), self._settings.limits.max_prompt_tokens
        most = min(own or model.context_length, model.context_length - 1)
        if num_tokens > most:
            reason = "this server's limit" if most == own else f"{model.name}'s context of {model.context_length}"
            message = f"{param}: {num_tokens} tokens; {reason} leaves {most} for a prompt. Shorten it."
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        if num_tokens == 0:
            raise ApiError(400, f"{param}: empty; a completion needs a token to follow.", param=param, code="invalid_value")

    def _request(
        self,
        model: HostedModel,
        body: ChatCompletionRequest | CompletionRequest,
        prompt: Prompt,
        plan: "_Plan",
        request_id: str,
        seed: int,
    ) -> ServedRequest:
        room = model.context_length - len(prompt.token_ids)
        temperature = model.defaults.temperature if body.temperature is None else body.temperature
        watched = body.stream or plan.stop_texts
        limit = (
            ThinkingLimit(plan.budget, model.think_end, model.close_token_ids)
            if plan.budget is not None and prompt.thinking
            else None
        )
        return ServedRequest(
            request_id=request_id,
            prompt_token_ids=prompt.token_ids,
            max_tokens=room if plan.max_tokens is None else min(plan.max_tokens, room),
            temperature=0.0 if temperature < _GREEDY_BELOW else temperature,
            top_p=model.defaults.top_p if body.top_p is None else body.top_p,
            seed=seed,
            top_logprobs=_top_logprobs(body),
            thinking=limit,
            interval_seconds=self._settings.stream_interval_seconds if watched else _WHOLE_INTERVAL_SECONDS,
        )


@dataclass(frozen=True)
class _Plan:
    """What holds for all choices of a request."""

    max_tokens: int | None
    budget: int | None
    stop_texts: tuple[str, ...]
    n: int
    """Per prompt."""


def choice_seed(seed: int, index: int) -> int:
    """Return a choice's seed, from 0 up to 2**63: the request's own for the first, and one that follows from it for others."""
    if index == 0:
        return seed % 2**63
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()) >> 1


def _check_together(body: ChatCompletionRequest | CompletionRequest) -> None:
    """Raises `ApiError` for fields that only go with others."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options goes with stream: true; set it, or leave the options out.", param="stream_options")
    if isinstance(body, ChatCompletionRequest):
        if body.top_logprobs is not None and not body.logprobs:
            message = f"top_logprobs is {body.top_logprobs} without logprobs: true; set it, or leave top_logprobs out."
            raise ApiError(400, message, param="top_logprobs", code="invalid_value")
    elif body.best_of is not None and body.best_of != (body.n or 1):
        message = f"best_of is {body.best_of} and n is {body.n or 1}; completions are not ranked here, so leave best_of out."
        raise ApiError(400, message, param="best_of", code="unsupported")


def _prompts(model: HostedModel, body: ChatCompletionRequest | CompletionRequest) -> list[Prompt]:
    if isinstance(body, ChatCompletionRequest):
        return [model.chat_prompt(body.messages)]
    match body.prompt:
        case str(text):
            return [model.text_prompt(text)]
        case [int(), *_] as token_ids:
            return [model.token_prompt(token_ids)]  # type: ignore[arg-type]
        case several:
            return [model.text_prompt(one) if isinstance(one, str) else model.token_prompt(one) for one in several]  # type: ignore[arg-type]


def _reading(model: HostedModel, body: ChatCompletionRequest | CompletionRequest, prompt: Prompt, plan: _Plan) -> ReadingRules:
    return ReadingRules(
        think_end=model.think_end if prompt.thinking else None,
        think_start=model.think_start,
        apart=isinstance(body, ChatCompletionRequest),
        stop_texts=plan.stop_texts,
    )


def _top_logprobs(body: ChatCompletionRequest | CompletionRequest) -> int | None:
    if isinstance(body, CompletionRequest):
        return body.logprobs
    return (body.top_logprobs or 0) if body.logprobs else None


def _shape(
    model: HostedModel, body: ChatCompletionRequest | CompletionRequest, record: RequestRecord, *, thinking: bool
) -> AnswerShape:
    created = int(record.arrived_at)
    if isinstance(body, ChatCompletionRequest):
        answer_id = f"chatcmpl-{record.request_id}"
        return ChatShape(answer_id, created, model.name, model.token_bytes, reasoning=thinking)
    return TextShape(f"cmpl-{record.request_id}", created, model.name, model.token_bytes, choices=record.choices)


def _roles(names: Sequence[str]) -> dict[str, str]:
    """Return the parts in the comparison, of two models or more."""
    return dict(zip(names, ("base", "squeezed"), strict=True)) if len(names) == 2 else {}


def _entry(model: HostedModel, role: str | None) -> ModelEntry:
    facts = ModelFacts(
        role=role,  # type: ignore[arg-type]
        context_length=model.context_length,
        reasoning=model.is_reasoning,
        base_length=model.base_length,
        squeezed_length=model.squeezed_length,
    )
    return ModelEntry(id=model.name, created=model.created, tokensqueeze=facts)
