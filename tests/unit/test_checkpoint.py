"""Opening a model directory: what it must hold, and one clear line where it does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tokensqueeze.engines.checkpoint import (
    context_length,
    demo_model_dir,
    eos_token_ids,
    load_model,
    load_tokenizer,
    model_dir,
)
from tokensqueeze.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model_dir(), tmp_path / "model"))


def test_demo_names_the_model_that_ships() -> None:
    assert model_dir("demo") == demo_model_dir().absolute()
    assert context_length(demo_model_dir()) == 1024


def test_a_directory_with_all_parts_is_returned_as_an_absolute_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert model_dir("model") == folder


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("config.json", "no config.json in it"),
        ("model.safetensors", r"no \*.safetensors in it; save the model with save_pretrained"),
        ("tokenizer.json", "no tokenizer in it; put the base model's tokenizer files beside the weights"),
        ("chat_template.jinja", "no chat template in it; add chat_template.jinja"),
    ],
)
def test_what_a_directory_lacks_is_named(folder: Path, missing: str, told: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=rf"model\.path: .*: {told}"):
        model_dir(str(folder))


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'model\.path: .*gone: no such directory; name .* or "demo"'):
        model_dir(str(tmp_path / "gone"))


def test_a_chat_template_may_stand_in_the_tokenizer_configuration(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages[0]['content'] }}"}))
    assert model_dir(str(folder)) == folder
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": None}))
    with pytest.raises(ModelError, match="no chat template in it"):
        model_dir(str(folder))


def test_a_damaged_configuration_is_one_clear_error(folder: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text('{"eos_token_id": 2,')
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON"):
        context_length(folder)
    with pytest.raises(ModelError, match=r"generation_config\.json: not valid JSON"):
        eos_token_ids(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: not valid JSON"):
        model_dir(str(folder))


def test_a_damaged_tokenizer_or_model_is_one_clear_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer can't be loaded"):
        load_tokenizer(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="the model can't be loaded"):
        load_model(folder, torch.float32)


def test_the_context_length_may_stand_in_the_text_part_of_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"text_config": {"max_position_embeddings": 77}}))
    assert context_length(tmp_path) == 77
    for without in ({}, {"text_config": None}):
        config.write_text(json.dumps(without))
        with pytest.raises(ModelError, match="no max_position_embeddings, so the context length is unknown"):
            context_length(tmp_path)


def test_every_token_that_ends_a_completion_counts(folder: Path) -> None:
    own = load_tokenizer(demo_model_dir()).eos_token_id
    assert isinstance(own, int)
    path = folder / "generation_config.json"
    for named, expected in (([5, 9], {5, 9, own}), (5, {5, own}), (None, {own})):
        path.write_text(json.dumps({"eos_token_id": named}))
        assert eos_token_ids(folder) == expected
    path.unlink()
    assert eos_token_ids(folder) == {own}


def test_a_model_is_loaded_for_inference_in_the_number_type_asked_for(folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(folder, dtype)
        assert (model.dtype, model.training) == (dtype, False)
