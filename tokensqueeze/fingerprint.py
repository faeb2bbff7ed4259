"""Fingerprints: short names that change whenever what they name changes, and seeds that follow from ids alone."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokensqueeze.errors import ModelError

_HASHED_WHOLE = 64 * 2**20
_BLOCK = 2**20
_BLOCKS = 64


def fingerprint(value: Mapping[str, Any]) -> str:
    """Return 16 hex digits that depend on the value, not on the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def seed_of(*parts: str | int) -> int:
    """Return a 63-bit seed that follows from ids, never from time or arrival."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def file_fingerprint(path: Path) -> str:
    """Return the fingerprint of a file's bytes.

    Of a file over 64 MiB its size and 64 evenly spaced MiB count: training changes every tensor, and a 140 GB model should
    not take minutes to name.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        if size <= _HASHED_WHOLE:
            digest.update(file.read())
        else:
            for block in range(_BLOCKS):
                file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def model_fingerprint(model_dir: Path) -> str:
    """Return the fingerprint of a model directory's weights, configuration, tokenizer and chat template."""
    if not model_dir.is_dir():
        raise ModelError(f"{model_dir}: no such model directory")
    kinds = {".json", ".safetensors", ".bin", ".jinja", ".model", ".txt"}
    files = sorted(path for path in model_dir.iterdir() if path.suffix in kinds and path.is_file())
    return fingerprint({path.name: file_fingerprint(path) for path in files})
