"""What clients may send: every field of OpenAI's, accepted, ignored or refused with a way out."""

import json
import typing
from typing import Any

import pytest
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsBase
from pydantic import ValidationError

from tokensqueeze.serving.protocol import ChatCompletionRequest, CompletionRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "How many?"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "How many?"}


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate_json(json.dumps(CHAT | fields))


def text(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(json.dumps(TEXT | fields))


def refusal(kind: type[ChatCompletionRequest] | type[CompletionRequest], fields: dict[str, Any]) -> tuple[str, str]:
    """Return the first mistake's place and message."""
    values = (CHAT if kind is ChatCompletionRequest else TEXT) | fields
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps(values))
    first = caught.value.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"]


def test_every_field_of_the_openai_client_is_known() -> None:
    known = set(typing.get_type_hints(chat_params.CompletionCreateParamsBase)) | {"stream"}
    assert known <= set(ChatCompletionRequest.model_fields)
    assert set(typing.get_type_hints(CompletionCreateParamsBase)) | {"stream"} <= set(CompletionRequest.model_fields)


def test_a_field_may_be_null_as_clients_send_what_was_not_set() -> None:
    nullable = set(ChatCompletionRequest.model_fields) - {"model", "messages"}
    assert chat(**dict.fromkeys(nullable)) == chat()
    assert text(**dict.fromkeys(set(CompletionRequest.model_fields) - {"model", "prompt"})) == text()


def test_what_changes_nothing_in_the_text_is_ignored() -> None:
    ignored = {
        "user": "ann",
        "metadata": {"team": "maths"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "prompt_cache_retention": "24h",
        "parallel_tool_calls": True,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "verbosity": "medium",
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    assert chat(**ignored).messages == chat().messages
    assert text(user="ann", echo=False, suffix="", best_of=1, frequency_penalty=0).prompt == "How many?"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("tools", [{"type": "function"}], "tools are not supported by this server; leave it out"),
        ("tool_choice", "required", 'leave it out, or set "none"'),
        ("functions", [{}], "functions are not supported"),
        ("function_call", {"name": "f"}, "functions are not supported"),
        ("response_format", {"type": "json_object"}, "ask for the form in a message"),
        ("logit_bias", {"5": 1}, "biases are not supported"),
        ("frequency_penalty", 0.1, "penalties are not supported by this server; leave it out, or set 0"),
        ("presence_penalty", -1, "penalties are not supported"),
        ("modalities", ["text", "audio"], 'set ["text"]'),
        ("audio", {"voice": "alloy"}, "audio is not supported"),
        ("prediction", {"type": "content", "content": "5"}, "predicted outputs are not supported"),
        ("moderation", {"model": "m"}, "moderation is not supported"),
        ("web_search_options", {}, "web search is not supported"),
        ("verbosity", "low", "ask for it in a message"),
        ("reasoning_effort", "xhigh", "must be low, medium or high; thinking_budget takes any number of tokens"),
        ("stop", "", "must be a text of 1 to 256 characters, or a list of such texts"),
        ("stop", ["a", ""], "must be a text of 1 to 256 characters"),
        ("stop", "a" * 257, "must be a text of 1 to 256 characters"),
        ("n", 0, "greater than or equal to 1"),
        ("n", True, "valid integer"),
        ("n", "2", "valid integer"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("max_tokens", 10**30, "less than or equal to"),
        ("max_completion_tokens", -5, "greater than or equal to 1"),
        ("temperature", 2.01, "less than or equal to 2"),
        ("temperature", "1", "valid number"),
        ("top_p", 0, "greater than 0"),
        ("top_p", 1.5, "less than or equal to 1"),
        ("seed", 2**63, "less than or equal to"),
        ("seed", 0.5, "valid integer"),
        ("logprobs", 3, "valid boolean"),
        ("top_logprobs", 21, "less than or equal to 20"),
        ("thinking_budget", -1, "greater than or equal to 0"),
        ("stream", "yes", "valid boolean"),
        ("messages", [], "at least 1 item"),
        ("model", 5, "valid string"),
        ("top_k", 20, "Extra inputs are not permitted"),
    ],
)
def test_what_a_chat_can_not_have_is_named(field: str, value: Any, told: str) -> None:
    place, message = refusal(ChatCompletionRequest, {field: value})
    assert place.startswith(field)
    assert told in message


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("echo", True, "put the prompt before the text"),
        ("suffix", "end", "suffixes are not supported"),
        ("logprobs", 6, "less than or equal to 5"),
        ("logprobs", True, "valid integer"),
        ("best_of", 0, "greater than or equal to 1"),
        ("prompt", None, "must be a text, a list of texts, a list of token ids, or a list of lists of token ids, none empty"),
        ("prompt", [], "must be a text"),
        ("prompt", [[]], "must be a text"),
        ("prompt", ["a", 5], "must be a text"),
        ("prompt", [-1], "must be a text"),
        ("prompt", [2**40], "must be a text"),
        ("prompt", [True], "must be a text"),
        ("messages", [], "Extra inputs are not permitted"),
    ],
)
def test_what_a_text_completion_can_not_have_is_named(field: str, value: Any, told: str) -> None:
    place, message = refusal(CompletionRequest, {field: value})
    assert place.startswith(field)
    assert told in message


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "tool", "content": "5", "tool_call_id": "x"}, "messages of tools and functions are not supported"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "images, audio and files are not supported",
        ),
        ({"role": "user", "content": None}, "must be text"),
        ({"role": "user"}, "Field required"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]},
            "tool calls are not supported by this server; send their",
        ),
        ({"role": "assistant", "content": "", "audio": {"id": "x"}}, "audio is not supported"),
    ],
)
def test_what_a_message_can_not_have_is_named(message: dict[str, Any], told: str) -> None:
    place, said = refusal(ChatCompletionRequest, {"messages": [CHAT["messages"][0], message]})
    assert place.startswith("messages.1.")
    assert told in said


def test_an_answer_of_ours_can_be_sent_back_as_a_message() -> None:
    # As the openai client dumps it.
    answer = {
        "role": "assistant",
        "content": "5",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "reasoning_content": "2 + 3",
    }
    assert chat(messages=[*CHAT["messages"], answer]).messages[1].reasoning_content == "2 + 3"


def test_seeds_take_64_bits_of_either_sign() -> None:
    assert (chat(seed=-(2**63)).seed, chat(seed=2**63 - 1).seed) == (-(2**63), 2**63 - 1)


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_prompts_of_a_text_completion_come_in_four_forms(prompt: Any) -> None:
    assert text(prompt=prompt).prompt == prompt


def test_a_lone_surrogate_is_refused() -> None:
    body = '{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}'
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate_json(body)
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate(json.loads(body))


def test_the_schema_tells_the_bounds() -> None:
    properties = ChatCompletionRequest.model_json_schema()["properties"]
    numbers = {name: properties[name]["anyOf"][0] for name in ("temperature", "n", "top_logprobs")}
    assert (numbers["temperature"]["minimum"], numbers["temperature"]["maximum"]) == (0, 2)
    assert (numbers["n"]["minimum"], numbers["top_logprobs"]["maximum"]) == (1, 20)
    assert ChatCompletionRequest.model_json_schema()["additionalProperties"] is False
    assert "GET /v1/models" in properties["model"]["description"]
