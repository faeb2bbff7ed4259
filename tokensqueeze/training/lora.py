"""LoRA (Hu et al. 2021) by peft: the base's matrices stay, and to each a product of two thin ones is learned, W + s·B·A.

The adapters are put inside the model, so the rest of the code sees the class it knows; at export they are added up.

Shapes: O outputs and I inputs of a linear layer, R rank.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tokensqueeze.config import LoRASettings
from tokensqueeze.errors import MissingPackageError, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INSTALL = "pip install 'tokensqueeze[lora]'"
_BASE, _ADAPTER = ".base_layer.", ".lora_"


@dataclass(frozen=True)
class Adapter:
    """What is learned beside one linear layer."""

    a_RI: torch.nn.Parameter
    b_OR: torch.nn.Parameter
    scale: float
    """alpha/rank."""
    transposed: bool
    """Whether the layer keeps its weight as [I, O]."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.a_RI, self.b_OR]

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """Return W + s·B·A, in float32 whatever the parts are in: a small update would be rounded away."""
        update = self.scale * (self.b_OR.detach().float() @ self.a_RI.detach().float())
        return weight.float() + (update.T if self.transposed else update)


def add_adapters(model: "PreTrainedModel", settings: LoRASettings, *, seed: int) -> None:
    """Put adapters into the model and freeze all else; its outputs stay what they were, for B starts at 0.

    The same seed gives the same adapters on every worker. Raises `MissingPackageError` without peft and `SettingsError`
    where `target_modules` names nothing, or the embeddings.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingPackageError(f"training.lora needs peft, which can't be imported ({error}): {INSTALL}") from error
    _check_targets(model, settings.target_modules)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=settings.target_modules,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)
    except ValueError as error:  # of peft's sentences, the first says what is wrong
        raise SettingsError(
            f"training.lora.target_modules: {settings.target_modules!r} can't be adapted in {type(model).__name__} "
            f'({str(error).partition(". ")[0]}); name linear layers such as "q_proj", or write "all-linear"'
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def _check_targets(model: "PreTrainedModel", targets: str | list[str]) -> None:
    if isinstance(targets, str):
        return
    modules = dict(model.named_modules())
    for target in targets:
        # As peft has it: a layer's whole name, or its last parts.
        matching = [module for name, module in modules.items() if name == target or name.endswith(f".{target}")]
        if not matching:
            raise SettingsError(
                f'training.lora.target_modules: {target}: no such layer in {type(model).__name__}; write "all-linear" for '
                "all linear layers but the LM head"
            )
        if model.get_input_embeddings() in matching or model.get_output_embeddings() in matching:
            raise SettingsError(
                f"training.lora.target_modules: {target}: the embeddings and the LM head can't be adapted, as they may be one "
                'tensor; name layers between them, or write "all-linear"'
            )


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return _ADAPTER in name


def base_name(name: str) -> str:
    """Return the name that a parameter has in a model without adapters."""
    return name.replace(_BASE, ".")


def adapters_of(model: torch.nn.Module) -> dict[str, Adapter]:
    """Return the adapters by the names of the weights that they change, as the model with adapters has them."""
    parameters = dict(model.named_parameters())
    found: dict[str, Adapter] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if not hasattr(layer, "lora_A") or not hasattr(layer, "base_layer"):
            continue
        (key,) = layer.lora_A
        found[f"{name}{_BASE}weight"] = Adapter(
            a_RI=parameters[f"{name}.lora_A.{key}.weight"],
            b_OR=parameters[f"{name}.lora_B.{key}.weight"],
            scale=layer.scaling[key],
            transposed=layer.fan_in_fan_out,
        )
    return found
