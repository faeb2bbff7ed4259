"""What a CUDA device computes, against the CPU in float32 and transformers' own `generate`."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.engines.lm_head import full_logits
from tokensqueeze.engines.transformers_engine import TransformersEngine
from tokensqueeze.scoring.window_kl import Window, WindowScorer
from tokensqueeze.traces.anatomy import Span

VOCABULARY = 53
CONTEXT = 256
EOS = 7
TRACE = np.random.default_rng(4).integers(8, VOCABULARY, size=60).tolist()
STEP = Span(20, 26)
CANDIDATES = [[20], [20, 22, 24], [40, 41, 42, 43], [44, 45, 46, 47, 48]]


def random_model(spread: float) -> PreTrainedModel:
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        initializer_range=spread,
    )
    return Qwen3ForCausalLM(config).eval()


def on(device: torch.device, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    # `nn.Module.to` is wrapped by transformers, which hides its signature.
    moved: Any = copy.deepcopy(model)
    return moved.to(device=device, dtype=dtype)


def kl_per_token(model: PreTrainedModel) -> list[float]:
    """Each candidate's mean KL, in nats per token of the window, read in several pieces."""
    scorer = WindowScorer(model, first_positions=8, growth=2)
    trace = scorer.read_trace(TRACE)
    asked = [Window(trace, STEP, candidate, len(TRACE) - STEP.end) for candidate in CANDIDATES]
    for window in asked:
        scorer.add(window)
    while not all(window.finished for window in asked):
        scorer.advance()
    return [window.kl / window.num_tokens for window in asked]


def test_float32_scores_are_those_of_the_cpu(device: torch.device) -> None:
    model = random_model(spread=0.3)
    expected = kl_per_token(on(torch.device("cpu"), model))
    assert min(expected) > 0.01
    assert kl_per_token(on(device, model)) == pytest.approx(expected, rel=1e-3)


def test_bfloat16_scores_are_close_to_those_of_the_same_weights_in_float32(device: torch.device) -> None:
    # Rounded, so that both have the same weights, and the passes alone differ.
    model = on(torch.device("cpu"), random_model(spread=0.1), torch.bfloat16)
    expected = kl_per_token(on(torch.device("cpu"), model))
    scores = kl_per_token(on(device, model, torch.bfloat16))
    assert max(expected) > 0.02
    assert np.isfinite(scores).all()
    assert scores == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_bfloat16_weights_are_their_float32_products(device: torch.device, bias: bool) -> None:
    torch.manual_seed(3)
    head = torch.nn.Linear(256, 1000, bias=bias).to(torch.bfloat16)
    hidden = torch.randn(17, 256).to(torch.bfloat16)
    expected = hidden.double() @ head.weight.double().T + (head.bias.double() if bias else 0.0)
    with torch.inference_mode():
        logits = full_logits(head.to(device), hidden.to(device))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double().cpu(), expected, rtol=1e-5, atol=1e-5)


def test_rows_on_trunks_write_greedily_what_transformers_itself_generates(device: torch.device) -> None:
    model = on(device, random_model(spread=0.4))
    text = np.random.default_rng(8).integers(8, VOCABULARY, size=200).tolist()
    prompts = [tuple(text[:length]) for length in (1, 50, 100, 198, 200) for _ in range(16)]
    requests = [GenerationRequest(prompt, 4 + index % 9, 0.0, 1.0, index) for index, prompt in enumerate(prompts)]
    engine = TransformersEngine(model, eos_token_ids=frozenset({EOS}), context_length=CONTEXT, max_batch_size=64)
    generations = engine.generate(requests)
    # The slots hold nothing of the trunk, or the rows would not have attended to it.
    assert engine._cache.keys[0].shape[2] < 200
    for request, generation in zip(requests, generations, strict=True):
        assert generation.token_ids == greedy_by_transformers(model, request)


def greedy_by_transformers(model: PreTrainedModel, request: GenerationRequest) -> list[int]:
    prompt = torch.tensor([list(request.prompt_token_ids)], device=model.device)
    return model.generate(  # type: ignore[operator]
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=request.max_tokens,
        eos_token_id=EOS,
        pad_token_id=0,
    )[0, prompt.shape[1] :].tolist()
