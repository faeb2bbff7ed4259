"""LoRA: only the adapters learn, the model begins as the base, and what is exported is the sum of both."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.config import LoRASettings, TrainingSettings
from tokensqueeze.errors import MissingPackageError, SettingsError
from tokensqueeze.methods import settings_from
from tokensqueeze.training.export import export_model, tensor_infos
from tokensqueeze.training.lora import Adapter, adapters_of, add_adapters

IDS = torch.arange(24).reshape(2, 12)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_adapted_model_begins_as_the_base() -> None:
    model = qwen()
    before = logits(model)
    add_adapters(model, LoRASettings(rank=4), seed=0)
    assert torch.equal(logits(model), before)


def test_all_linear_layers_but_the_head_get_adapters_of_the_rank() -> None:
    model = qwen()
    add_adapters(model, LoRASettings(rank=4, alpha=6), seed=0)
    adapters = adapters_of(model)
    expected = {f"layers.{layer}.{part}" for layer in (0, 1) for part in LINEAR}
    found = {name.removeprefix("model.").removesuffix(".base_layer.weight") for name in adapters}
    assert {".".join(name.split(".")[:2] + name.split(".")[3:]) for name in found} == expected
    assert all((len(a.a_RI), a.b_OR.shape[1], a.scale) == (4, 4, 1.5) for a in adapters.values())


def test_gradients_reach_the_adapters_alone() -> None:
    model = qwen()
    add_adapters(model, LoRASettings(rank=2, target_modules=["q_proj", "down_proj"]), seed=0)
    learn(model, steps=2)
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {
        f"model.layers.{layer}.{part}.lora_{matrix}.default.weight"
        for layer in (0, 1)
        for part in ("self_attn.q_proj", "mlp.down_proj")
        for matrix in "AB"
    }
    assert all(bool(parameter.grad.any()) for parameter in model.parameters() if parameter.grad is not None)


def test_same_seed_gives_the_same_adapters_and_leaves_the_random_stream_alone() -> None:
    models = [qwen(), qwen(), qwen()]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_adapters(model, LoRASettings(rank=2), seed=seed)
    assert torch.rand(1) == expected
    first, same, other = (next(iter(adapters_of(model).values())).a_RI for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("architecture", ["qwen", "gpt2"])
def test_exported_model_is_a_plain_one_with_the_adapted_ones_logits(tmp_path: Path, architecture: str) -> None:
    model = qwen() if architecture == "qwen" else gpt2()
    model.save_pretrained(tmp_path / "base")
    add_adapters(model, LoRASettings(rank=3, alpha=7), seed=0)
    before = logits(model)
    learn(model, steps=5)
    adapted = logits(model)
    assert (adapted - before).abs().max() > 1e-2
    export_model(model, base_dir=tmp_path / "base", target_dir=tmp_path / "model")
    assert tensor_infos(tmp_path / "model") == tensor_infos(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(plain) is type(model)
    assert not adapters_of(plain)
    torch.testing.assert_close(logits(plain), adapted, atol=1e-5, rtol=0)
    unchanged = load_file(tmp_path / "base" / "model.safetensors")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    changed = {name for name in unchanged if not torch.equal(unchanged[name], exported[name])}
    assert changed == {name.replace(".base_layer", "") for name in adapters_of(model)}


def test_merging_rounds_once_at_the_end() -> None:
    # Near 1, numbers in bfloat16 are 1/128 apart: added up in it, 1.0146 would be 1.0156.
    def matrix(*rows: list[float]) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.tensor(rows, dtype=torch.bfloat16))

    adapter = Adapter(a_RI=matrix([1 / 256], [1 / 1024]), b_OR=matrix([1.0, 1.0]), scale=3.0, transposed=False)
    merged = adapter.merged(torch.ones(1, 1, dtype=torch.bfloat16))
    assert merged.dtype == torch.float32
    assert merged.item() == 1 + 3 * (1 / 256 + 1 / 1024)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["q_proj", "lm_head"]])
def test_embeddings_and_head_are_refused(targets: list[str]) -> None:
    with pytest.raises(
        SettingsError, match=r"training\.lora\.target_modules: \w+: the embeddings and the LM head can't be adapted"
    ):
        add_adapters(qwen(), LoRASettings(target_modules=targets), seed=0)


@pytest.mark.parametrize("targets", [["query"], ["q_proj", "query"]])
def test_name_that_matches_no_layer_is_refused(targets: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"training\.lora\.target_modules: query: no such layer in Qwen3ForCausalLM"):
        add_adapters(qwen(), LoRASettings(target_modules=targets), seed=0)


def test_layer_that_is_not_linear_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"training\.lora\.target_modules: \['input_layernorm'\] can't be adapted"):
        add_adapters(qwen(), LoRASettings(target_modules=["input_layernorm"]), seed=0)


def test_missing_peft_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"training\.lora needs peft.*pip install 'tokensqueeze\[lora\]'"):
        add_adapters(qwen(), LoRASettings(), seed=0)


def test_section_without_values_means_adapters_for_all_linear_layers_and_no_section_none() -> None:
    assert training_settings({}).lora is None
    assert training_settings({"lora": {}}).lora == LoRASettings(rank=16, alpha=32, target_modules="all-linear")


@pytest.mark.parametrize("targets", ["q_proj", [], ""])
def test_targets_that_are_neither_all_nor_a_list_of_names_are_a_mistake_in_the_settings(targets: object) -> None:
    with pytest.raises(
        SettingsError, match=r'training\.lora\.target_modules: .*write "all-linear", or a list of names; it is '
    ):
        training_settings({"lora": {"target_modules": targets}})


def training_settings(training: dict[str, object]) -> TrainingSettings:
    run = {"method": "tokensqueeze", "problems": {"train": {"path": "demo:train"}}, "training": training}
    return settings_from(run).training


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def learn(model: PreTrainedModel, *, steps: int) -> None:
    """Take some steps; the last one's gradients stay."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


def qwen() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    """A model that keeps its linear layers' weights as [inputs, outputs]."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config)
