"""The formulas behind the page on 7B and 70B, held against the ZeRO paper, published sizes and sums done by hand."""

from typing import Literal

import pytest

from benchmarks.training_arithmetic import (
    GPU,
    SHAPES,
    Shape,
    activation_bytes_per_token,
    flops_per_token,
    gather_seconds,
    layer_bytes_per_token,
    memory,
    offloaded_bytes,
    page,
    state_bytes,
    step_time,
)

TINY = Shape("tiny", layers=3, hidden=4, intermediate=10, heads=2, kv_heads=1, vocabulary=100, head_dim=2)
ROUND = GPU("round", flops=1e12, node_link=100e9, network=50e9, host_link=10e9)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_state_of_7_5_billion_parameters_on_64_gpus_is_the_zero_papers(stage: Literal[0, 1, 2, 3], gigabytes: float) -> None:
    assert state_bytes(7.5e9, workers=64, stage=stage, gradient_bytes=2) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_float32_gradients_make_18_bytes_per_parameter() -> None:
    assert state_bytes(1000, workers=1, stage=0) == 18_000
    assert state_bytes(1000, workers=2, stage=3) == 9_000


def test_offloading_takes_all_but_weights_and_half_precision_gradients_off_the_gpu() -> None:
    assert offloaded_bytes(1000, workers=4) == (1000, 4000)


def test_sizes_of_the_models_are_those_on_their_cards() -> None:
    small, large = SHAPES
    assert small.parameters == pytest.approx(7.61e9, rel=0.002)
    assert small.parameters - 2 * small.embedding_parameters == pytest.approx(6.53e9, rel=0.002)
    assert large.parameters == pytest.approx(70.6e9, rel=0.002)


def test_tiny_model_has_the_parameters_that_one_counts() -> None:
    # Queries 4 × 4, output 4 × 4, keys and values 4 × 2 each, three matrices of 4 × 10; embeddings 100 × 4.
    assert TINY.layer_parameters == 16 + 16 + 8 + 8 + 120
    assert TINY.parameters == 3 * 168 + 800
    assert TINY.multiplied_parameters == 3 * 168 + 400


def test_checkpointing_keeps_each_layers_input_and_one_layer_at_work() -> None:
    # In bf16: 6 × 4, queries and attention 2 × 4, keys and values 2 × 2, MLP 4 × 10.
    assert layer_bytes_per_token(TINY) == 2 * (24 + 8 + 4 + 40)
    at_work = 2 * (3 * 10 + 2 * 4)
    assert activation_bytes_per_token(TINY, checkpointing=True) == 3 * 2 * 4 + 152 + at_work
    assert activation_bytes_per_token(TINY, checkpointing=False) == 3 * 152 + at_work


def test_operations_are_eight_per_parameter_and_token_with_checkpointing_and_six_without() -> None:
    # Forward: 2 × 904 for the matrices, and for 10 tokens seen 2 products × 2 operations × 4 numbers × 3 layers.
    forward = 2 * 904 + 10 * 4 * 4 * 3
    assert flops_per_token(TINY, context=10, checkpointing=False) == 3 * forward
    assert flops_per_token(TINY, context=10, checkpointing=True) == 4 * forward
    assert flops_per_token(TINY, context=0, checkpointing=True) == 8 * 904


def test_slower_of_the_links_within_and_between_nodes_sets_the_pace() -> None:
    shape = SHAPES[0]
    weights = 2 * shape.parameters
    assert gather_seconds(shape, ROUND, workers=8) == pytest.approx(weights * 7 / 8 / 70e9)
    # Two nodes: half of the weights come from the other one, over the slower network; within, 15 of 16 parts.
    slow = GPU("slow network", 1e12, node_link=100e9, network=20e9, host_link=10e9)
    assert gather_seconds(shape, slow, workers=16) == pytest.approx(weights / 2 / 14e9)
    fast = GPU("fast network", 1e12, node_link=100e9, network=200e9, host_link=10e9)
    assert gather_seconds(shape, fast, workers=16) == pytest.approx(weights * 15 / 16 / 70e9)


def test_weights_are_gathered_twice_and_gradients_reduced_once_in_every_pass() -> None:
    shape = SHAPES[0]
    # 128 × 9,000 tokens on 8 GPUs are 144,000 each: 16 passes of 9,000.
    step = step_time(shape, ROUND, workers=8, pass_tokens=9000)
    assert step.passes == 16
    assert step.communication == pytest.approx(16 * 3 * gather_seconds(shape, ROUND, workers=8))
    assert step.compute == pytest.approx(144_000 * flops_per_token(shape, context=2250, checkpointing=True) / 0.4e12)


def test_what_breaks_first_is_what_no_longer_fits() -> None:
    small, large = SHAPES
    states = memory(large, workers=8, checkpointing=True, offload=False)
    assert states.breaks_first().startswith("weights and optimiser: 159 GB")
    assert states.longest_pass == 0
    without = memory(small, workers=8, checkpointing=False, offload=False)
    assert without.breaks_first().startswith("activations")
    assert without.total(without.longest_pass) <= 80e9 < without.total(without.longest_pass + 1)
    assert memory(small, workers=8, checkpointing=True, offload=False).breaks_first().startswith("nothing")


def test_page_has_a_row_for_every_model_count_and_setting() -> None:
    lines = list(page())
    assert sum(line.startswith("| 7B") for line in lines) == sum(line.startswith("| 70B") for line in lines) == 8 + 4
