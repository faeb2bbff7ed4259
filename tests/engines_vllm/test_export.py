"""What training exports is a model that vLLM serves, and serves as transformers does."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.engines.vllm_engine import VLLMEngine
from tokensqueeze.training.export import export_model

pytest.importorskip("vllm", reason="vLLM can't be imported here; `make test-vllm` runs this in an environment that has it")
pytestmark = pytest.mark.vllm

QUESTIONS = [
    "Mia has 12 pens. Mia buys 7 pens. How many pens does Mia have now?",
    "Tom has 40 cards. Tom gives away 15 cards, then loses 3. How many cards are left?",
]


def test_exported_model_in_several_files_gives_the_same_greedy_tokens_in_vllm_and_transformers(tmp_path: Path) -> None:
    trained = AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter *= 1 + 0.1 * torch.randn_like(parameter)
    before = AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=torch.float32)
    export_model(trained, base_dir=demo_model_dir(), target_dir=tmp_path / "model", max_shard_bytes=1_000_000)
    assert len(list((tmp_path / "model").glob("model-*-of-*.safetensors"))) > 1

    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    prompts = [prompt(question) for question in QUESTIONS]
    expected = [greedy(exported, ids) for ids in prompts]
    assert expected != [greedy(before, ids) for ids in prompts]
    engine = VLLMEngine(tmp_path / "model", EngineSettings(kind="vllm", max_batch_size=4), "float32")
    generations = engine.generate([GenerationRequest(ids, 100, temperature=0, top_p=1, seed=0) for ids in prompts])
    assert [generation.token_ids for generation in generations] == expected


def greedy(model: torch.nn.Module, ids: list[int]) -> list[int]:
    return model.generate(torch.tensor([ids]), max_new_tokens=100, do_sample=False)[0, len(ids) :].tolist()  # type: ignore[operator]


def prompt(question: str) -> list[int]:
    tokenizer = load_tokenizer(demo_model_dir())
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False).input_ids  # type: ignore[arg-type]
