"""An export holds every tensor of the base, in its shape and type, in files of a set size, or it is not there at all."""

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tokensqueeze.errors import StorageError, TrainingError
from tokensqueeze.training.export import TensorInfo, check_exportable, check_same_tensors, export_model, tensor_infos


def test_untied_bfloat16_base_gives_a_bfloat16_model_of_the_trained_weights(tmp_path: Path) -> None:
    base = saved(qwen(tie=False).bfloat16(), tmp_path / "base")
    trained = trained_from(base)
    export_model(trained, base_dir=base, target_dir=tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").glob("*.safetensors")] == ["model.safetensors"]
    assert tensor_infos(tmp_path / "model") == tensor_infos(base)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded[name], tensor.to(torch.bfloat16)), name


def test_each_tensor_keeps_the_number_type_that_it_has_in_the_base(tmp_path: Path) -> None:
    base = saved(qwen(tie=False).bfloat16(), tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in weights.items()}
    save_file(mixed, base / "model.safetensors", metadata={"format": "pt"})
    trained = trained_from(base)
    export_model(trained, base_dir=base, target_dir=tmp_path / "model")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in exported.items()} == {name: t.dtype for name, t in mixed.items()}
    for name, tensor in trained.state_dict().items():
        assert torch.equal(exported[name], tensor.to(mixed[name].dtype)), name


def test_large_model_is_split_into_files_that_an_index_lists(tmp_path: Path) -> None:
    base = saved(qwen(tie=True), tmp_path / "base")
    trained = trained_from(base)
    export_model(trained, base_dir=base, target_dir=tmp_path / "model", max_shard_bytes=8_000, gathered_bytes=1_000)
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(files) >= 3
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    contents = {file: load_file(tmp_path / "model" / file) for file in files}
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in contents.values()]
    assert max(sizes) <= 8_000
    # No two neighbours would have fitted into one.
    assert all(first + second > 8_000 for first, second in pairwise(sizes))
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, tensors in contents.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(sizes)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.state_dict().items())


def test_tensor_larger_than_a_file_may_be_gets_a_file_of_its_own(tmp_path: Path) -> None:
    base = saved(qwen(tie=True), tmp_path / "base")
    export_model(trained_from(base), base_dir=base, target_dir=tmp_path / "model", max_shard_bytes=1)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == len(tensor_infos(base))


def test_tied_head_may_be_in_the_base_and_is_not_in_the_export(tmp_path: Path) -> None:
    model = qwen(tie=True)
    base = saved(model, tmp_path / "base")
    twice = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_file(twice, base / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in tensor_infos(base)
    trained = trained_from(base)
    export_model(trained, base_dir=base, target_dir=tmp_path / "model")
    assert tensor_infos(base).keys() - tensor_infos(tmp_path / "model").keys() == {"lm_head.weight"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.lm_head.weight, trained.lm_head.weight)


def test_tensor_that_the_model_leaves_unread_is_copied_from_the_base(tmp_path: Path) -> None:
    base = saved(qwen(tie=True), tmp_path / "base")
    unread = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(4.0), "counts": torch.arange(3)}
    save_file(load_file(base / "model.safetensors") | unread, base / "model.safetensors", metadata={"format": "pt"})
    export_model(trained_from(base), base_dir=base, target_dir=tmp_path / "model")
    assert tensor_infos(tmp_path / "model") == tensor_infos(base)
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in unread.items())


def test_buffer_that_the_base_saved_is_exported(tmp_path: Path) -> None:
    model = qwen(tie=True)
    model.model.register_buffer("seen", torch.zeros(3))
    base = saved(model, tmp_path / "base")
    assert "model.seen" in tensor_infos(base)
    model.model.get_buffer("seen").fill_(7.0)
    export_model(model, base_dir=base, target_dir=tmp_path / "model")
    assert torch.equal(load_file(tmp_path / "model" / "model.safetensors")["model.seen"], torch.full((3,), 7.0))


def test_experts_that_transformers_fuses_are_written_one_by_one_as_in_the_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
    )
    model = Qwen3MoeForCausalLM(config)
    base = saved(model, tmp_path / "base")
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in tensor_infos(base)
    trained = trained_from(base)
    export_model(trained, base_dir=base, target_dir=tmp_path / "model")
    assert tensor_infos(tmp_path / "model") == tensor_infos(base)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.state_dict().items())


def test_all_but_weights_is_the_bases_own(tmp_path: Path) -> None:
    base = saved(qwen(tie=True), tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "model.safetensors.index.json").write_text("{}")
    (base / "config.json").chmod(0o604)
    export_model(trained_from(base), base_dir=base, target_dir=tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "generation_config.json", "chat_template.jinja", "model.safetensors"}
    for name in files - {"model.safetensors"}:
        assert (tmp_path / "model" / name).read_bytes() == (base / name).read_bytes()
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o604


def test_base_whose_tensors_have_other_names_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = qwen(tie=False)
    base = saved(model, tmp_path / "base")
    renamed = {name.replace("q_proj", "query"): tensor for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"2 are not in it \(model\.layers\.0\.self_attn\.query\.weight.*save_pretrained"):
        check_exportable(model, base)
    with pytest.raises(TrainingError, match=r"2 of its own are not in the files \(model\.layers\.0\.self_attn\.q_proj"):
        export_model(model, base_dir=base, target_dir=tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_base_with_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = qwen(tie=False)
    base = saved(model, tmp_path / "base")
    weights = load_file(base / "model.safetensors") | {"model.norm.weight": torch.ones(8)}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        TrainingError, match=r"1 tensors have another shape in the model \(model\.norm\.weight \(16,\) for \(8,\)"
    ):
        check_exportable(model, base)


def test_quantised_base_is_refused_by_its_number_type(tmp_path: Path) -> None:
    model = qwen(tie=False)
    base = saved(model, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"lm_head\.weight is F8_E4M3; train from a checkpoint in F32, BF16, F16"):
        check_exportable(model, base)


def test_export_that_lacks_a_tensor_or_has_another_shape_or_type_is_not_whole(tmp_path: Path) -> None:
    def infos(**tensors: tuple[tuple[int, ...], str]) -> dict[str, TensorInfo]:
        return {name: TensorInfo(shape, dtype, tmp_path) for name, (shape, dtype) in tensors.items()}

    base = infos(a=((1,), "F32"), b=((3, 2), "F32"), c=((1,), "F32"), d=((5,), "F32"))
    exported = infos(a=((1,), "F32"), b=((0,), "F32"), c=((1,), "BF16"))
    with pytest.raises(TrainingError, match=r"of 4 tensors 1 are missing \(d\) and 2 differ \(b .*\(0,\).*\(3, 2\).*c .*BF16"):
        check_same_tensors(exported, base=base, path=tmp_path)


def test_disk_that_fills_leaves_the_model_that_was_there(tmp_path: Path) -> None:
    base = saved(qwen(tie=False), tmp_path / "base")
    before = trained_from(base)
    export_model(before, base_dir=base, target_dir=tmp_path / "model")
    after = trained_from(base, by=2.0)
    # Small files still fit, as on a disk with little left.
    with (
        files_of_at_most(4_000),
        pytest.raises(StorageError, match=r"\.model\.tmp: the model can't be written .*free some space"),
    ):
        export_model(after, base_dir=base, target_dir=tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.state_dict().items())
    export_model(after, base_dir=base, target_dir=tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in after.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Have the system refuse larger files, in bytes: a write fails in the middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def trained_from(base: Path, *, by: float = 1.0) -> PreTrainedModel:
    """Return the base in float32 with other weights."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by
    return model


def qwen(*, tie: bool) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tie,
    )
    return Qwen3ForCausalLM(config)
