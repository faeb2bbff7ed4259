"""What a user sees who asks for vLLM and has not installed it."""

import sys

import pytest

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.engines.vllm_engine import VLLMEngine
from tokensqueeze.errors import MissingPackageError


def test_a_missing_vllm_is_named_with_the_install_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # Python's own way to make an import fail
    with pytest.raises(MissingPackageError, match=r"vllm.*pip install 'tokensqueeze\[gpu\]'"):
        VLLMEngine(demo_model_dir(), EngineSettings.model_validate({"kind": "vllm"}), "auto")
