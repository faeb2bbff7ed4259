"""How much memory and time does training a 7B or a 70B model take on 8 and 64 GPUs, and what breaks first?

    python -m benchmarks.training_arithmetic > PAGE.md

Arithmetic alone: nothing is measured, and every assumption is a named figure below. Bytes are decimal (80 GB = 80·10⁹).

Symbols: P parameters, W GPUs, T tokens of a pass, h width of the model, f of its MLP, q and kv of its queries and keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

GB = 1e9

PAIRS_PER_STEP = 128
MEAN_PAIR_TOKENS = 9_000
"""Both sides, and the prompt once; the paper's context of 9,000 tokens allows 18,000."""
LONGEST_PAIR_TOKENS = 18_000
GPU_BYTES = 80 * GB
OWN_BYTES = 6 * GB
"""CUDA's context, NCCL's buffers, and what the allocator can't use."""
LIVE_PARAMETERS = 1e9
"""DeepSpeed's `stage3_max_live_parameters`: how many may be gathered at once; a larger layer still must be."""
REDUCE_BUCKET = 5e8
"""DeepSpeed's `reduce_bucket_size`, in gradients."""
LOGITS_AT_ONCE = 2**25
"""What `objectives/sequence_logps.py` lets exist at a time."""
LOGITS_COPIES = 3
"""Logits, their softmax, and its gradient, in float32."""
MFU = 0.4
"""Share of the GPU's arithmetic that dense passes over long sequences reach."""
LINK_SHARE = 0.7
"""Share of a link's bandwidth that collectives reach."""
NODE_GPUS = 8
NODE_CPU_BYTES = 2000 * GB
CPU_BANDWIDTH = 200 * GB
"""Of a node's main memory, per second, that its optimiser gets."""


@dataclass(frozen=True)
class Shape:
    """A dense decoder with untied embeddings and gated MLPs; norms and biases are left out."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_dim: int = 128

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + 2 * self.embedding_parameters

    @property
    def multiplied_parameters(self) -> int:
        """Those that every token is multiplied with: looking up the input embedding is no arithmetic."""
        return self.parameters - self.embedding_parameters


@dataclass(frozen=True)
class GPU:
    name: str
    flops: float
    """In bf16, dense, per second."""
    node_link: float
    """Bytes per second and direction, of one GPU to the others of its node."""
    network: float
    """Bytes per second and direction, of a whole node to the others."""
    host_link: float
    """Bytes per second between a GPU and its CPU."""


SHAPES = (
    Shape("7B (Qwen2.5)", 28, 3584, 18944, 28, 4, 152064),
    Shape("70B (Llama 3)", 80, 8192, 28672, 64, 8, 128256),
)
GPUS = (
    GPU("A100", 312e12, 300 * GB, 200 * GB, 25 * GB),
    GPU("H100", 989e12, 450 * GB, 400 * GB, 50 * GB),
)
COUNTS = (8, 64)


def state_bytes(parameters: float, *, workers: int, stage: Literal[0, 1, 2, 3], gradient_bytes: int = 4) -> float:
    """Return a GPU's share of bf16 weights (2 bytes), gradients, and float32 master weights and Adam's moments (12).

    With gradients of 2 bytes these are the 16 bytes per parameter of the ZeRO paper (Rajbhandari et al. 2020, figure 1);
    here gradients are accumulated in float32.
    """
    weights, gradients, optimizer = 2 * parameters, gradient_bytes * parameters, 12 * parameters
    return (
        weights / (workers if stage >= 3 else 1)
        + gradients / (workers if stage >= 2 else 1)
        + optimizer / (workers if stage >= 1 else 1)
    )


def offloaded_bytes(parameters: float, *, workers: int) -> tuple[float, float]:
    """Return a GPU's bytes and its share of the CPU's when ZeRO-3's optimiser waits on the CPU.

    bf16 weights and gradients stay; master weights, moments and a float32 copy of the gradients go.
    """
    return 4 * parameters / workers, 16 * parameters / workers


def layer_bytes_per_token(shape: Shape) -> int:
    """Return what one layer keeps of a token for its backward pass, in bf16, with fused attention.

    Six times h: its input, two normed copies, the attention's output behind its projection, the sum after it, and one
    more for the norms' float32 upcast. Twice q: queries and the attention's output. Keys and values. Four times f: gate, up,
    the activated gate, and the product.
    """
    return 2 * (6 * shape.hidden + 2 * shape.queries + 2 * shape.keys + 4 * shape.intermediate)


def activation_bytes_per_token(shape: Shape, *, checkpointing: bool) -> int:
    """Return what a token takes at the peak of the backward pass, gradients of the layer at work included."""
    at_work = 2 * (3 * shape.intermediate + 2 * shape.hidden)
    if checkpointing:
        return shape.layers * 2 * shape.hidden + layer_bytes_per_token(shape) + at_work
    return shape.layers * layer_bytes_per_token(shape) + at_work


def gathered_bytes(shape: Shape) -> float:
    """Return what ZeRO-3 holds whole for a while: weights, the gradient of the largest piece, and a bucket of gradients.

    The LM head's gradient is added up in float32, from bf16 products of a chunk each.
    """
    largest = max(shape.layer_parameters, shape.embedding_parameters)
    gradient = max(2 * largest, 6 * shape.embedding_parameters)
    return 2 * max(LIVE_PARAMETERS, largest) + gradient + 2 * REDUCE_BUCKET


def logits_bytes() -> float:
    return 4 * LOGITS_COPIES * LOGITS_AT_ONCE


def flops_per_token(shape: Shape, *, context: float, checkpointing: bool) -> float:
    """Return the operations of forward and backward pass for a token that sees `context` tokens on average.

    Forward 2·P, backward 4·P, computed again 2·P; attention's two products of q numbers per token seen likewise.
    """
    forward = 2 * shape.multiplied_parameters + 4 * context * shape.queries * shape.layers
    return forward * (4 if checkpointing else 3)


def gather_seconds(shape: Shape, gpu: GPU, *, workers: int) -> float:
    """Return how long all weights take to reach every GPU once, in bf16; reducing all gradients takes as long.

    Between nodes, the weights enter each node once; within it, they reach every GPU.
    """
    arriving = 2 * shape.parameters * (workers - 1) / workers
    within = arriving / (gpu.node_link * LINK_SHARE)
    nodes = workers / NODE_GPUS
    between = 2 * shape.parameters * (nodes - 1) / nodes / (gpu.network * LINK_SHARE)
    return max(within, between)


@dataclass(frozen=True)
class Memory:
    """One GPU's, in bytes."""

    states: float
    gathered: float
    logits: float
    activations_per_token: float
    cpu_per_node: float

    @property
    def fixed(self) -> float:
        return self.states + self.gathered + self.logits + OWN_BYTES

    def total(self, tokens: int) -> float:
        return self.fixed + tokens * self.activations_per_token

    @property
    def longest_pass(self) -> int:
        """Tokens that one pass may have."""
        return max(0, int((GPU_BYTES - self.fixed) / self.activations_per_token))

    def breaks_first(self) -> str:
        if self.cpu_per_node > NODE_CPU_BYTES:
            return f"the node's main memory: {self.cpu_per_node / GB:,.0f} GB"
        if self.fixed > GPU_BYTES:
            return f"weights and optimiser: {self.states / GB:,.0f} GB a GPU before the first token"
        if self.longest_pass < LONGEST_PAIR_TOKENS:
            return f"activations: a pass of more than {self.longest_pass:,} tokens"
        return f"nothing up to {self.longest_pass:,} tokens in a pass, then activations"


def memory(shape: Shape, *, workers: int, checkpointing: bool, offload: bool) -> Memory:
    states, on_cpu = state_bytes(shape.parameters, workers=workers, stage=3), 0.0
    if offload:
        states, on_cpu = offloaded_bytes(shape.parameters, workers=workers)
    return Memory(
        states=states,
        gathered=gathered_bytes(shape),
        logits=logits_bytes(),
        activations_per_token=activation_bytes_per_token(shape, checkpointing=checkpointing),
        cpu_per_node=on_cpu * NODE_GPUS,
    )


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step."""

    compute: float
    communication: float
    offload: float
    passes: int
    """That each GPU does."""

    @property
    def overlapped(self) -> float:
        return max(self.compute, self.communication) + self.offload

    @property
    def one_after_the_other(self) -> float:
        return self.compute + self.communication + self.offload


def step_time(shape: Shape, gpu: GPU, *, workers: int, pass_tokens: int) -> StepTime:
    """Return the time of a step of 128 pairs with checkpointing, under ZeRO-3, where a pass reads `pass_tokens`.

    Weights are gathered for the forward and again for the backward pass, and gradients reduced, in every pass.
    """
    tokens = PAIRS_PER_STEP * MEAN_PAIR_TOKENS / workers
    passes = max(1, round(tokens / pass_tokens))
    # A side is half a pair, and its tokens see half of it on average.
    context = MEAN_PAIR_TOKENS / 4
    compute = tokens * flops_per_token(shape, context=context, checkpointing=True) / (gpu.flops * MFU)
    parameters = shape.parameters / workers
    # Gradients down in float32, weights up in bf16; Adam on the CPU reads and writes 28 bytes per parameter.
    link = (4 + 2) * parameters / (gpu.host_link * LINK_SHARE)
    adam = 28 * parameters * NODE_GPUS / CPU_BANDWIDTH
    return StepTime(compute, 3 * passes * gather_seconds(shape, gpu, workers=workers), link + adam, passes)


def main() -> None:
    print("\n".join(page()))


def page() -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# How much memory and time does training take at 7B and 70B, and what breaks first?"
    yield ""
    yield "Arithmetic from `python -m benchmarks.training_arithmetic`; nothing here was measured, and no GPU ran."
    yield ""
    yield "## Assumptions"
    yield (
        "* ZeRO-3 in bf16 with float32 gradients, master weights and Adam: 18 bytes per parameter, over all GPUs of "
        f"{_gb(GPU_BYTES)}."
    )
    yield (
        f"* {PAIRS_PER_STEP} pairs a step, {MEAN_PAIR_TOKENS:,} tokens a pair on average (both sides, prompt once), "
        f"{LONGEST_PAIR_TOKENS:,} at most."
    )
    yield (
        f"* Gathered: {LIVE_PARAMETERS:.0e} weights at once or the largest layer, its gradient (6 bytes a number of the LM "
        f"head), a bucket of {REDUCE_BUCKET:.0e} gradients; logits {LOGITS_AT_ONCE / 2**20:.0f} Mi at a time, {LOGITS_COPIES} "
        f"times in float32; {_gb(OWN_BYTES)} for CUDA, NCCL and fragmentation."
    )
    yield (
        "* Activations in bf16, attention fused. With checkpointing each layer's input is kept, and one layer at work; "
        "without, all that every layer needs."
    )
    yield (
        f"* {MFU:.0%} of the GPU's bf16 arithmetic; collectives at {LINK_SHARE:.0%} of the links: "
        + "; ".join(
            f"{gpu.name} {gpu.flops / 1e12:.0f} TFLOP/s, {_gb(gpu.node_link)}/s in a node, {_gb(gpu.network)}/s a node, "
            f"{_gb(gpu.host_link)}/s to the CPU"
            for gpu in GPUS
        )
        + "."
    )
    yield f"* Nodes of {NODE_GPUS} GPUs with {_gb(NODE_CPU_BYTES)} of main memory, {_gb(CPU_BANDWIDTH)}/s of it for Adam."
    yield ""
    yield "## Memory of one GPU, a pass of one pair of the greatest length"
    yield from _table(
        ["model", "GPUs", "checkpointing", "optimiser on", "states", "gathered", "activations", "all", "of 80", "breaks first"],
        _memory_rows(),
    )
    yield ""
    yield "## Time of a step with checkpointing, a pass of two pairs of mean length"
    yield from _table(
        [
            "model",
            "GPUs",
            "passes",
            "arithmetic, s",
            "gather + reduce, s",
            "step, s",
            "tokens/s a GPU",
            "with offload, s",
            "10,000 pairs",
            "bound by",
        ],
        _time_rows(),
    )
    yield ""
    yield "A step is between the longer of arithmetic and communication, fully overlapped, and their sum; both are given."
    yield "Where the optimiser must wait on the CPU, as for 70B on 8 GPUs, the time with offload counts; it is overlapped."
    yield (
        f"On 64 GPUs a step of {PAIRS_PER_STEP} pairs is two pairs a GPU: it waits for the longest, so pairs of up to "
        f"{LONGEST_PAIR_TOKENS:,} tokens among those of {MEAN_PAIR_TOKENS:,} break the balance before the links do; larger "
        "batches mend that. Time to load, save and measure dev accuracy is left out."
    )


def _memory_rows() -> Iterator[list[str]]:
    for shape in SHAPES:
        for workers in COUNTS:
            for checkpointing in (True, False):
                for offload in (False, True):
                    one = memory(shape, workers=workers, checkpointing=checkpointing, offload=offload)
                    activations = LONGEST_PAIR_TOKENS * one.activations_per_token
                    total = one.total(LONGEST_PAIR_TOKENS)
                    yield [
                        shape.name,
                        str(workers),
                        "yes" if checkpointing else "no",
                        "CPU" if offload else "GPU",
                        *(f"{value / GB:,.0f}" for value in (one.states, one.gathered, activations, total)),
                        "fits" if total <= GPU_BYTES else "**no**",
                        one.breaks_first(),
                    ]


def _time_rows() -> Iterator[list[str]]:
    for shape in SHAPES:
        for workers in COUNTS:
            for gpu in GPUS:
                step = step_time(shape, gpu, workers=workers, pass_tokens=2 * MEAN_PAIR_TOKENS)
                steps = 10_000 / PAIRS_PER_STEP
                seconds = step.overlapped - step.offload
                tokens = PAIRS_PER_STEP * MEAN_PAIR_TOKENS / workers
                yield [
                    shape.name,
                    f"{workers} {gpu.name}",
                    str(step.passes),
                    f"{step.compute:,.1f}",
                    f"{step.communication:,.1f}",
                    f"{seconds:,.1f}–{step.one_after_the_other - step.offload:,.1f}",
                    f"{tokens / seconds:,.0f}",
                    f"{step.overlapped:,.1f}",
                    f"{steps * seconds / 3600:,.1f} h",
                    "arithmetic" if step.compute >= step.communication else "communication",
                ]


def _table(headers: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield "|---" * len(headers) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _gb(value: float) -> str:
    return f"{value / GB:,.0f} GB"


if __name__ == "__main__":
    main()
