"""Packed log-probabilities and their gradients on a CUDA device against the CPU in float32."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.objectives.packing import pack, packed_attention
from tokensqueeze.objectives.sequence_logps import CompletionLogps

VOCABULARY = 211
PROMPTS = [np.random.default_rng(1).integers(0, VOCABULARY, size=size).tolist() for size in (5, 17)]
COMPLETIONS = [np.random.default_rng(2).integers(0, VOCABULARY, size=size).tolist() for size in (40, 63, 1, 128)]
WEIGHTS = [0.3, -0.2, 1.0, 0.05]


def model(dtype: torch.dtype, device: torch.device, *, recompute: bool = False) -> PreTrainedModel:
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.1,
    )
    # Rounded first, so that both devices have the same weights.
    rounded: Any = Qwen3ForCausalLM(config)
    rounded = rounded.to(torch.bfloat16).to(dtype).to(device)
    rounded.train()
    if recompute:
        rounded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return rounded


def logps_and_gradients(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    packed = pack([(PROMPTS[0], COMPLETIONS[:2]), (PROMPTS[1], COMPLETIONS[2:])], device=model.device)
    with packed_attention(model):
        logps_S = CompletionLogps(model, positions_at_once=50)(packed)
        (logps_S * torch.tensor(WEIGHTS, device=model.device)).sum().backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return logps_S.detach().cpu(), gradients


@pytest.mark.parametrize("recompute", [False, True])
def test_float32_is_that_of_the_cpu_to_the_gradient(device: torch.device, recompute: bool) -> None:
    logps_S, gradients = logps_and_gradients(model(torch.float32, torch.device("cpu")))
    on_device, device_gradients = logps_and_gradients(model(torch.float32, device, recompute=recompute))
    torch.testing.assert_close(on_device, logps_S, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(device_gradients, gradients, rtol=1e-2, atol=1e-3)


def test_bfloat16_is_close_to_the_same_weights_in_float32(device: torch.device) -> None:
    logps_S, gradients = logps_and_gradients(model(torch.float32, torch.device("cpu")))
    on_device, device_gradients = logps_and_gradients(model(torch.bfloat16, device))
    torch.testing.assert_close(on_device, logps_S, rtol=1e-2, atol=0.1)
    for name, gradient in gradients.items():
        difference = torch.linalg.vector_norm(device_gradients[name] - gradient) / torch.linalg.vector_norm(gradient)
        assert difference < 0.05, name
