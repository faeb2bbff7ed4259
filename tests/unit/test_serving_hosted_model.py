"""What the ingress reads of a model's folder, and how it writes prompts."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.errors import ModelError
from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.hosted_model import HostedModel, ModelDefaults
from tokensqueeze.serving.protocol import Message
from tokensqueeze.serving.settings import ServedModel, check_serve_settings

CARD = """---
library_name: transformers
tags:
- tokensqueeze
{figures}---

# A model
"""
PLAIN_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose tokenizer, which is read once per folder, stays as it is."""
    return Path(shutil.copytree(demo_model_dir(), tmp_path_factory.mktemp("shared") / "model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model_dir(), tmp_path / "model"))


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder


def hosted(folder: Path | str = "demo", *, thinking: Mapping[str, Any] | None = None, **served: Any) -> HostedModel:
    model = {"path": str(folder), **served}
    settings = check_serve_settings({"models": [model], "thinking": thinking or {}})
    return HostedModel.load("tiny", ServedModel(**model), settings)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def test_the_demo_thinks_and_has_a_context_of_1024() -> None:
    model = hosted()
    assert (model.is_reasoning, model.context_length, model.vocabulary_size) == (True, 1024, 502)
    assert (model.think_start, model.think_end) == ("<think>", "</think>")
    assert (model.base_length, model.squeezed_length) == (None, None)
    assert model.defaults == ModelDefaults(temperature=1.0, top_p=1.0)


def test_messages_are_put_under_the_chat_template_and_opened_for_thinking() -> None:
    prompt = hosted().chat_prompt([Message(role="developer", content="Be brief."), user("2 + 3?")])
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert prompt.text == expected
    assert prompt.thinking
    assert list(prompt.token_ids) == load_tokenizer(demo_model_dir())(expected, add_special_tokens=False).input_ids


def test_text_parts_are_joined_by_line_breaks() -> None:
    message = Message.model_validate({"role": "user", "content": [{"type": "text", "text": t} for t in ("2 + 3?", "Briefly.")]})
    assert hosted().chat_prompt([message]).text == hosted().chat_prompt([user("2 + 3?\nBriefly.")]).text


def test_a_template_may_strip_or_use_earlier_thinking(folder: Path) -> None:
    template = "{% for m in messages %}[{{ m['content'].split('</think>')[-1] }}|{{ m.reasoning_content }}]{% endfor %}<think>"
    messages = [user("2?"), Message(role="assistant", content="x</think>y", reasoning_content="r"), user("3?")]
    assert hosted(with_template(folder, template)).chat_prompt(messages).text == "[2?|][y|r][3?|]<think>"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}<think>", "one only"),
        ("{{ 6 // (2 - messages | length) }}<think>", "integer division or modulo by zero"),
    ],
)
def test_what_a_template_refuses_is_told_to_the_client(folder: Path, template: str, told: str) -> None:
    model = hosted(with_template(folder, template))
    with pytest.raises(ApiError, match=f"The chat template of tiny refuses these messages: {told}") as caught:
        model.chat_prompt([user("a"), user("b")])
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_template_that_fails_on_a_lone_question_is_the_models_mistake(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"the chat template fails on a lone user message \(never\); mend the template"):
        hosted(with_template(folder, "{{ raise_exception('never') }}"))


def test_whether_a_model_thinks_follows_from_its_template(folder: Path) -> None:
    assert hosted(with_template(folder, PLAIN_TEMPLATE + "{# strips up to </think> #}")).is_reasoning


def test_whether_a_model_thinks_can_be_set(folder: Path) -> None:
    # The tag is in the vocabulary, as in those of models that share it with one that thinks.
    assert not hosted(with_template(folder, PLAIN_TEMPLATE)).is_reasoning
    assert hosted(folder, reasoning=True).chat_prompt([user("2?")]).thinking
    assert not hosted(reasoning=False).chat_prompt([user("2?")]).thinking


def test_a_prompt_that_ends_with_closed_thinking_is_not_thinking(folder: Path) -> None:
    assert hosted(with_template(folder, PLAIN_TEMPLATE + "<think>\n\n</think>\n\n")).is_reasoning
    assert not hosted(folder).chat_prompt([user("2?")]).thinking
    assert hosted().text_prompt("2 + 3").thinking and not hosted().text_prompt("2 + 3</think>\n").thinking


def test_other_tags_have_their_own_opening() -> None:
    assert hosted(think_end="[/THINK]").think_start == "[THINK]"
    assert hosted(think_end="ANSWER:").think_start is None


def test_token_prompts_must_be_of_the_vocabulary() -> None:
    assert hosted().token_prompt([92, 501]).token_ids == (92, 501)
    with pytest.raises(ApiError, match="prompt: 502 is no token of tiny, whose ids go up to 501") as caught:
        hosted().token_prompt([92, 502])
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_a_nul_is_a_character_like_others() -> None:
    prompt = hosted().text_prompt("a\0b")
    assert b"".join(hosted().token_bytes.shown(token) for token in prompt.token_ids) == b"a\0b"


def test_text_prompts_get_the_special_tokens_that_the_tokenizer_adds(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    path.write_text(json.dumps(tokenizer))
    model = hosted(folder)
    assert model.text_prompt("ab").token_ids[0] == 1
    assert model.text_prompt("").token_ids == (1,)
    # A template has written them itself.
    assert model.chat_prompt([user("ab")]).token_ids.count(1) == 2


def test_budgets_are_closed_by_the_settings_text() -> None:
    tokenizer = load_tokenizer(demo_model_dir())
    assert tokenizer.decode(list(hosted().close_token_ids)) == "\n</think>\n\n"
    ids = hosted(thinking={"close_text": " Enough.{think_end}"}).close_token_ids
    assert tokenizer.decode(list(ids)) == " Enough.</think>"


def test_efforts_are_shares_of_the_context_or_tokens() -> None:
    # 1024 / 32, / 8 and / 2.
    assert hosted().efforts == {"low": 32, "medium": 128, "high": 512}
    assert hosted(thinking={"low": 0, "medium": 1, "high": 700}).efforts == {"low": 0, "medium": 1, "high": 700}


def test_generation_defaults_are_the_models_own(shared: Path) -> None:
    path = shared / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2, "temperature": 0.6, "top_p": None, "top_k": 20}))
    assert hosted(shared).defaults == ModelDefaults(temperature=0.6, top_p=1.0)
    for wrong in ({"temperature": "hot"}, {"temperature": 7}, {"top_p": 0}, {"top_p": True}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=f"generation_config.json: {next(iter(wrong))} is .*; it must be a number from"):
            hosted(shared)
    path.unlink()
    assert hosted(shared).defaults == ModelDefaults()


def test_lengths_come_from_the_model_card(shared: Path) -> None:
    figures = "tokensqueeze:\n  base_length: 131.5\n  squeezed_length: 60\n  base_accuracy: 0.9\n  squeezed_accuracy: 0.91\n"
    (shared / "README.md").write_text(CARD.format(figures=figures))
    assert (hosted(shared).base_length, hosted(shared).squeezed_length) == (131.5, 60.0)
    (shared / "README.md").write_text(CARD.format(figures="tokensqueeze: {base_length: 12.0}\n"))
    assert (hosted(shared).base_length, hosted(shared).squeezed_length) == (12.0, None)


@pytest.mark.parametrize("card", [CARD.format(figures=""), "# No front matter\ntokensqueeze: 5\n", "---\nbroken: [\n---\n", ""])
def test_another_models_card_promises_nothing(shared: Path, card: str) -> None:
    (shared / "README.md").write_text(card)
    assert (hosted(shared).base_length, hosted(shared).squeezed_length) == (None, None)


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ("tokensqueeze: 5\n", "tokensqueeze is 5; it must have base_length and squeezed_length under it"),
        ("tokensqueeze:\n  base_length: long\n", "tokensqueeze.base_length is 'long'; it must be a positive number of tokens"),
        ("tokensqueeze:\n  squeezed_length: -1\n", "tokensqueeze.squeezed_length is -1"),
        ("tokensqueeze:\n  base_length: .nan\n", "tokensqueeze.base_length is nan"),
        ("tokensqueeze: {\n", "its front matter is not valid YAML"),
    ],
)
def test_a_malformed_card_is_named(shared: Path, figures: str, told: str) -> None:
    (shared / "README.md").write_text(CARD.format(figures=figures))
    with pytest.raises(ModelError, match=rf"README\.md: {told}"):
        hosted(shared)


def test_what_is_missing_is_said_as_everywhere() -> None:
    with pytest.raises(ModelError, match=r"model\.path: nowhere: no such directory"):
        hosted("nowhere")
