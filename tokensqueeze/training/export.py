"""The trained model as a Hugging Face directory: safetensors in the base's number type, all else the base's own.

It appears under its name only when it is whole, and only if it holds every tensor of the base: an export that did not
gather its shards saves nothing, silently.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from tokensqueeze.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NOT_WEIGHTS = {".json", ".jinja", ".model", ".txt"}


def export_model(model: "PreTrainedModel", *, base_dir: Path, target_dir: Path) -> None:
    """Write `model`, whose weights are all here, beside `base_dir`'s tokenizer, configuration and chat template.

    Raises `TrainingError` where a tensor of the base is missing or has another shape.
    """
    temporary = target_dir.with_name(f".{target_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    base, dtype = tensor_shapes(base_dir), base_dtype(base_dir)
    # A tied tensor is written once; loading ties it again, whether or not the base had it twice.
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items() if name not in tied}
    model.save_pretrained(temporary, state_dict=state)
    for path in base_dir.iterdir():
        if path.suffix in _NOT_WEIGHTS and not path.name.endswith(".index.json"):
            shutil.copyfile(path, temporary / path.name)
    for path in temporary.glob("*.safetensors"):
        # Weights are written for their owner alone; who may read the folder's other files may read them too.
        path.chmod((temporary / "config.json").stat().st_mode)
    check_same_tensors(tensor_shapes(temporary), base={name: base[name] for name in base.keys() - tied}, path=temporary)
    shutil.rmtree(target_dir, ignore_errors=True)
    temporary.rename(target_dir)


def check_same_tensors(exported: Mapping[str, list[int]], *, base: Mapping[str, list[int]], path: Path) -> None:
    """Raise `TrainingError` unless every tensor of the base was exported with the same shape."""
    missing = [name for name in sorted(base) if name not in exported]
    changed = [
        f"{name} {exported[name]} for {base[name]}" for name in sorted(base) if exported.get(name, base[name]) != base[name]
    ]
    if missing or changed:
        raise TrainingError(
            f"{path}: the exported model is not whole: of {len(base)} tensors {len(missing)} are missing "
            f"({', '.join(missing[:3])}) and {len(changed)} have another shape ({', '.join(changed[:3])}); the "
            "checkpoints hold the trained weights"
        )


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return name and shape of every tensor in a directory's safetensors files, without reading the tensors."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def base_dtype(folder: Path) -> torch.dtype:
    """Return the number type of the largest share of a directory's weights."""
    sizes: dict[torch.dtype, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                dtype = _TORCH_DTYPES.get(tensor.get_dtype())
                if dtype is None:
                    raise TrainingError(f"{path}: {name} is {tensor.get_dtype()}; train from a checkpoint in F32, BF16 or F16")
                sizes[dtype] = sizes.get(dtype, 0) + int(torch.Size(tensor.get_shape()).numel())
    return max(sizes, key=lambda dtype: sizes[dtype])


_TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
