"""Open a Hugging Face model directory: tokenizer, context length, weights; or say what it lacks."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokensqueeze.errors import MissingPackageError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INSTALL = "pip install 'tokensqueeze[run]'"


def model_dir(path: str) -> Path:
    """Return the directory a `model.path` setting names. Raises `ModelError` where it is no causal LM with a chat template."""
    folder = demo_model_dir() if path == "demo" else Path(path)
    if not folder.is_dir():
        raise ModelError(f'model.path: {path}: no such directory; name a Hugging Face model directory, or "demo"')
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.path: {path}: no config.json in it, so it is no Hugging Face model directory")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model.path: {path}: no *.safetensors in it; save the model with save_pretrained")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"model.path: {path}: no tokenizer in it; put the base model's tokenizer files beside the weights")
    if not _has_chat_template(folder):
        raise ModelError(
            f"model.path: {path}: no chat template in it; add chat_template.jinja, or chat_template to tokenizer_config.json"
        )
    return folder.absolute()


def demo_model_dir() -> Path:
    return Path(str(files("tokensqueeze.demo") / "model"))


@cache
def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a directory's tokenizer. Raises `ModelError` where it can't be read."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingPackageError(f"transformers is not installed: {INSTALL}") from error
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers do; all of it means one thing here
        raise ModelError(f"{folder}: the tokenizer can't be loaded ({type(error).__name__}: {error})") from error


def load_model(folder: Path, dtype: "torch.dtype") -> "PreTrainedModel":
    """Load a directory's causal LM for inference, safetensors only, no remote code."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    except Exception as error:
        raise ModelError(f"{folder}: the model can't be loaded ({type(error).__name__}: {error})") from error
    return model.eval()


def context_length(folder: Path) -> int:
    """Return how many tokens, prompt and completion together, the model takes."""
    config = _read_json(folder / "config.json")
    length = config.get("max_position_embeddings") or (config.get("text_config") or {}).get("max_position_embeddings")
    if not length:
        raise ModelError(f"{folder}/config.json: no max_position_embeddings, so the context length is unknown")
    return int(length)


def eos_token_ids(folder: Path) -> frozenset[int]:
    """Return every token that ends a completion: the generation config's, and the tokenizer's own."""
    path = folder / "generation_config.json"
    named = _read_json(path).get("eos_token_id") if path.is_file() else None
    ids = set(named) if isinstance(named, list) else {named}
    ids.add(load_tokenizer(folder).eos_token_id)
    return frozenset(i for i in ids if i is not None)


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(_read_json(config).get("chat_template"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}); copy the file from the model again") from error
