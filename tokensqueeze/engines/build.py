"""Build the engine that the settings name, or load the bare model for scoring."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.base import Engine
from tokensqueeze.engines.checkpoint import load_model
from tokensqueeze.errors import MissingPackageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tokensqueeze.engines.continuous_batch import ContinuousBatch

_TOKENS_A_PASS = 2048


def build_engine(folder: Path, engine: EngineSettings, dtype: str) -> Engine:
    """Load a model directory into the engine that the settings name. Backends are imported here, when they are needed."""
    if engine.kind == "vllm":
        from tokensqueeze.engines.vllm_engine import VLLMEngine

        return VLLMEngine(folder, engine, dtype)
    torch_dtype, device = _place(folder, dtype, engine.threads)
    from tokensqueeze.engines.transformers_engine import TransformersEngine

    return TransformersEngine.load(folder, dtype=torch_dtype, device=device, max_batch_size=engine.max_batch_size)


def build_batch(folder: Path, engine: EngineSettings, dtype: str) -> "ContinuousBatch":
    """Load a model directory into a batch that serves."""
    torch_dtype, device = _place(folder, dtype, engine.threads)
    from tokensqueeze.engines.continuous_batch import ContinuousBatch
    from tokensqueeze.engines.transformers_engine import TransformersEngine

    loaded = TransformersEngine.load(folder, dtype=torch_dtype, device=device, max_batch_size=engine.max_batch_size)
    return ContinuousBatch(loaded)


def build_scoring_model(folder: Path, engine: EngineSettings, dtype: str) -> "PreTrainedModel":
    """Load a model directory for forward passes, without gradients."""
    torch_dtype, device = _place(folder, dtype, engine.threads)
    from tokensqueeze.engines.packed_linear import pack_linear_layers

    model = load_model(folder, torch_dtype).to(device)  # type: ignore[arg-type]
    pack_linear_layers(model, _TOKENS_A_PASS)
    return model


def _place(folder: Path, dtype: str, threads: int) -> "tuple[torch.dtype, str]":
    try:
        import torch
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingPackageError("torch and transformers are needed: pip install 'tokensqueeze[run]'") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(threads)
    if dtype != "auto":
        return getattr(torch, dtype), device
    own = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    return own if device == "cuda" and isinstance(own, torch.dtype) else torch.float32, device
