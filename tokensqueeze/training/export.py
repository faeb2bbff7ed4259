"""The trained model as a Hugging Face directory: safetensors in the base's number types, all else the base's own.

Tensors go to the files a few at a time, merged with their adapters where LoRA trained those, so no worker ever holds the
whole model. The directory appears under its name only when it is whole: every tensor of the base, in its shape and type.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from tokensqueeze.errors import StorageError, TokenSqueezeError, TrainingError
from tokensqueeze.training.lora import Adapter, adapters_of, base_name, is_adapter
from tokensqueeze.training.together import held_whole, raise_alike, rank, whole_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NOT_WEIGHTS = {".json", ".jinja", ".model", ".txt"}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_TRAINABLE = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors file's header says about a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it, such as F32."""
    file: Path = field(compare=False)


@dataclass(frozen=True)
class _Tensor:
    """A parameter or buffer of the model, under the name that it is saved by."""

    name: str
    tensor: torch.Tensor
    adapter: Adapter | None = None

    @property
    def held(self) -> list[torch.Tensor]:
        """The parameters to be gathered for it."""
        return [self.tensor, *(self.adapter.parameters if self.adapter else [])]

    @property
    def num_bytes(self) -> int:
        return sum(whole_size(tensor).numel() * tensor.element_size() for tensor in self.held)

    def value(self) -> torch.Tensor:
        """Return the tensor as it is to be saved; it is held whole meanwhile."""
        return self.adapter.merged(self.tensor.detach()) if self.adapter else self.tensor.detach()


def export_model(
    model: "PreTrainedModel",
    *,
    base_dir: Path,
    target_dir: Path,
    max_shard_bytes: int = 5 * 10**9,
    gathered_bytes: int = 2**28,
) -> None:
    """Write `model` beside `base_dir`'s tokenizer, configuration and chat template; every worker calls this.

    Weights beyond `max_shard_bytes` are split over several files. Where the model is cut up among the workers, each holds
    `gathered_bytes` of it at a time, or one tensor that is larger, and the first worker the file that it will write next.
    Raises `TrainingError` where a tensor of the base is missing or differs, and `StorageError` where the disk is full; on
    every worker alike.
    """
    check_exportable(model, base_dir)
    writer = _Writer(base_dir, target_dir, max_shard_bytes) if rank() == 0 else None
    for group in _groups(_own_tensors(model), most_bytes=gathered_bytes):
        with held_whole([parameter for tensor in group for parameter in tensor.held]), torch.no_grad():
            if writer:
                for tensor in group:
                    writer.add(model, tensor)
    if writer:
        writer.finish(skipped=_tied(model).keys())
    raise_alike(writer.failure if writer else None)


def check_exportable(model: "PreTrainedModel", base_dir: Path) -> None:
    """Raise `TrainingError` unless the model's tensors are those of the base's files, in name and shape.

    Reads no weights: call it before training, not only after.
    """
    base, tied = tensor_infos(base_dir), _tied(model)
    own: dict[str, tuple[int, ...]] = {}
    for tensor in _own_tensors(model):
        empty = torch.empty(whole_size(tensor.tensor), dtype=tensor.tensor.dtype, device="meta")
        for name, part in revert_weight_conversion(model, {tensor.name: empty}).items():
            own[name] = tuple(part.shape)
            if name in base and empty.is_floating_point() and base[name].dtype not in _TRAINABLE:
                raise TrainingError(
                    f"{base[name].file}: {name} is {base[name].dtype}; train from a checkpoint in {', '.join(_TRAINABLE)}"
                )
    changed = [
        f"{name} {own[name]} for {base[name].shape}"
        for name in sorted(own.keys() & base.keys())
        if own[name] != base[name].shape
    ]
    new = sorted(own.keys() - base.keys() - set(tied.values()))
    unread = sorted(base.keys() - own.keys() - tied.keys())
    # What the model leaves unread, such as a head for speculation, is copied; but not where it may be a tensor renamed.
    if changed or (new and unread):
        raise TrainingError(
            f"{base_dir}: a trained model can't be saved as these files are: {len(changed)} tensors have another shape in "
            f"the model ({', '.join(changed[:3])}), {len(unread)} are not in it ({', '.join(unread[:3])}), and {len(new)} "
            f"of its own are not in the files ({', '.join(new[:3])}); load the base in transformers and save it again "
            "with save_pretrained"
        )


def check_same_tensors(exported: Mapping[str, TensorInfo], *, base: Mapping[str, TensorInfo], path: Path) -> None:
    """Raise `TrainingError` unless every tensor of the base was exported, in the same shape and number type."""
    missing = [name for name in sorted(base) if name not in exported]
    changed = [
        f"{name} {exported[name]} for {base[name]}" for name in sorted(base) if exported.get(name, base[name]) != base[name]
    ]
    if missing or changed:
        raise TrainingError(
            f"{path}: the exported model is not whole: of {len(base)} tensors {len(missing)} are missing "
            f"({', '.join(missing[:3])}) and {len(changed)} differ ({', '.join(changed[:3])}); the checkpoints hold the "
            "trained weights"
        )


def tensor_infos(folder: Path) -> dict[str, TensorInfo]:
    """Return shape and number type of every tensor in a directory's safetensors files, without reading the tensors."""
    infos: dict[str, TensorInfo] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                infos[name] = TensorInfo(tuple(tensor.get_shape()), tensor.get_dtype(), path)
    return infos


def main_dtype(infos: Iterable[TensorInfo]) -> str:
    """Return the number type of the largest share of the weights, as safetensors names it."""
    sizes: dict[str, int] = {}
    for info in infos:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + torch.Size(info.shape).numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


class _Writer:
    """The first worker's side of an export: takes tensors a few at a time, and writes a file when it is full.

    Its first error stops the writing and is kept: the others go on gathering, and would wait for this worker.
    """

    def __init__(self, base_dir: Path, target_dir: Path, max_shard_bytes: int):
        self.base_dir, self.target_dir, self.max_shard_bytes = base_dir, target_dir, max_shard_bytes
        self.base = tensor_infos(base_dir)
        self.main_dtype = main_dtype(self.base.values())
        self.temporary = target_dir.with_name(f".{target_dir.name}.tmp")
        self.failure: TokenSqueezeError | None = None
        self._waiting: dict[str, torch.Tensor] = {}
        """In memory, for the next file."""
        self._written: list[list[str]] = []
        """The tensors of each file."""
        self._total_bytes = 0
        with self._keeping_failure():
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(parents=True)

    def add(self, model: "PreTrainedModel", tensor: _Tensor) -> None:
        if self.failure:
            return
        with self._keeping_failure():
            for name, part in revert_weight_conversion(model, {tensor.name: tensor.value()}).items():
                self._add(name, part)

    def finish(self, *, skipped: Collection[str]) -> None:
        """Write what is left, check the whole and give the directory its name."""
        if self.failure:
            return
        with self._keeping_failure():
            done = {name for names in [*self._written, self._waiting] for name in names}
            expected = {name: info for name, info in self.base.items() if name not in skipped}
            for name in sorted(expected.keys() - done):
                with safe_open(self.base[name].file, framework="pt") as file:
                    self._add(name, file.get_tensor(name))
            self._write_file()
            self._name_files()
            for path in self.base_dir.iterdir():
                if path.suffix in _NOT_WEIGHTS and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, self.temporary / path.name)
            check_same_tensors(tensor_infos(self.temporary), base=expected, path=self.temporary)
            shutil.rmtree(self.target_dir, ignore_errors=True)
            self.temporary.rename(self.target_dir)

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        dtype = _DTYPES[self.base[name].dtype if name in self.base else self.main_dtype]
        # A copy even where nothing changes: what was gathered is gone before the file is written.
        own = torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
        held = sum(waiting.nbytes for waiting in self._waiting.values())
        if self._waiting and held + own.nbytes > self.max_shard_bytes:
            self._write_file()
        self._waiting[name] = own
        self._total_bytes += own.nbytes

    def _write_file(self) -> None:
        path = self.temporary / _unnumbered(len(self._written))
        save_file(self._waiting, path, metadata={"format": "pt"})
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        # Weights are written for their owner alone; who may read the folder's other files may read them too.
        path.chmod((self.base_dir / "config.json").stat().st_mode)
        self._written.append(list(self._waiting))
        self._waiting.clear()

    def _name_files(self) -> None:
        """Give the files the names that transformers and vLLM look for; how many there are is known only at the end."""
        count = len(self._written)
        names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        names = names if count > 1 else ["model.safetensors"]
        for number, name in enumerate(names):
            (self.temporary / _unnumbered(number)).rename(self.temporary / name)
        if count > 1:
            index = {
                "metadata": {"total_size": self._total_bytes},
                "weight_map": {name: file for file, held in zip(names, self._written, strict=True) for name in held},
            }
            (self.temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    @contextmanager
    def _keeping_failure(self) -> Iterator[None]:
        try:
            yield
        except TokenSqueezeError as error:
            self.failure = error
        except (OSError, SafetensorError) as error:
            self.failure = StorageError(
                f"{self.temporary}: the model can't be written ({error}); free some space and run the same command again: "
                "it goes on from the newest checkpoint"
            )


def _own_tensors(model: "PreTrainedModel") -> Iterator[_Tensor]:
    """Yield parameters and saved buffers, under the base's names and with their adapters; tied ones once."""
    adapters, tied, saved = adapters_of(model), _tied(model), model.state_dict().keys()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not is_adapter(name) and name not in tied:
            yield _Tensor(base_name(name), parameter, adapters.get(name))
    for name, buffer in model.named_buffers():
        if name in saved and name not in tied:
            yield _Tensor(base_name(name), buffer)


def _groups(tensors: Iterable[_Tensor], *, most_bytes: int) -> Iterator[list[_Tensor]]:
    group: list[_Tensor] = []
    for tensor in tensors:
        if group and sum(other.num_bytes for other in group) + tensor.num_bytes > most_bytes:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def _tied(model: "PreTrainedModel") -> dict[str, str]:
    """Return the tensors that are others by a second name, with the first; loading ties them again."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _unnumbered(number: int) -> str:
    return f"model-{number}.safetensors"
