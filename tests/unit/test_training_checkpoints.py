"""Which checkpoints count, what an export must hold, and when accuracy has collapsed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.errors import TrainingError
from tokensqueeze.tables import write_json
from tokensqueeze.training.checkpoints import MARKER, newest_checkpoint, remove_incomplete
from tokensqueeze.training.dev_accuracy import check_not_collapsed
from tokensqueeze.training.export import base_dtype, check_same_tensors, export_model, tensor_shapes
from tokensqueeze.training.training_log import DevRow


def test_newest_complete_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    for step in (50, 100):
        _checkpoint(tmp_path, step, complete=True)
    _checkpoint(tmp_path, 150, complete=False)
    newest = newest_checkpoint(tmp_path, job_name="job")
    assert newest is not None
    assert (newest.step, newest.path.name) == (100, "step-000100")


def test_no_checkpoint_at_all_means_from_the_start(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 50, complete=False)
    assert newest_checkpoint(tmp_path, job_name="job") is None
    assert newest_checkpoint(tmp_path / "absent", job_name="job") is None


def test_checkpoint_of_other_settings_is_an_error(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 50, complete=True)
    with pytest.raises(TrainingError, match=r"step-000050: made with other settings.*\(job, now other\)"):
        newest_checkpoint(tmp_path, job_name="other")


def test_only_half_written_checkpoints_are_removed(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 50, complete=True)
    _checkpoint(tmp_path, 100, complete=False)
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000050"]


def test_export_of_an_untied_bfloat16_model_loads_and_keeps_the_number_type(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "model"
    model = _model(tie=False)
    model.bfloat16().save_pretrained(base)
    trained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 1
    export_model(trained, base_dir=base, target_dir=target)
    assert base_dtype(target) == torch.bfloat16
    assert tensor_shapes(target) == tensor_shapes(base)
    loaded = AutoModelForCausalLM.from_pretrained(target)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(torch.bfloat16)), name


def test_tied_head_may_be_in_the_base_and_not_in_the_export(tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = _model(tie=True)
    model.save_pretrained(base)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in tensor_shapes(base)
    export_model(AutoModelForCausalLM.from_pretrained(base), base_dir=base, target_dir=tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_export_without_a_tensor_of_the_base_is_an_error_and_leaves_no_model(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "model"
    model = _model(tie=True)
    model.save_pretrained(base)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights | {"model.extra": torch.zeros(2)}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"1 are missing \(model\.extra\)"):
        export_model(model, base_dir=base, target_dir=target)
    assert not target.exists()


def test_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"0 are missing \(\) and 1 have another shape \(b \[0\] for \[3, 2\]\)"):
        check_same_tensors({"a": [1], "b": [0]}, base={"a": [1], "b": [3, 2]}, path=tmp_path)


def test_accuracy_may_fall_by_as_much_as_allowed_and_no_more() -> None:
    base = DevRow(0, 0.75, 80.0)
    check_not_collapsed(DevRow(50, 0.5, 20.0), base=base, max_drop=0.25)
    with pytest.raises(TrainingError, match=r"step 50: dev accuracy fell from 75\.0% to 49\.0%, more than .* = 0\.25"):
        check_not_collapsed(DevRow(50, 0.49, 20.0), base=base, max_drop=0.25)


def _checkpoint(folder: Path, step: int, *, complete: bool) -> None:
    path = folder / f"step-{step:06d}"
    path.mkdir()
    (path / "weights.pt").write_bytes(b"weights")
    if complete:
        write_json(path / MARKER, {"step": step, "job_name": "job"})


def _model(*, tie: bool) -> Qwen3ForCausalLM:
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
