"""Generation with vLLM, on GPUs: paged attention, continuous batches, a prefix cache for draws from one prefix."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.base import Generation, GenerationRequest, distinct_prompts
from tokensqueeze.engines.checkpoint import context_length, eos_token_ids
from tokensqueeze.errors import EngineError, MissingPackageError

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams  # pyright: ignore[reportMissingImports]

_CPU_STEP_TOKENS = 4096
"""vLLM's own choice of how many tokens a step on a CPU may read."""
INSTALL = "pip install 'tokensqueeze[gpu]'"


class VLLMEngine:
    """A causal LM served by vLLM in this process's GPUs.

    Not deterministic: vLLM forms its batches by what has arrived and what memory is free, kernels sum in an order that
    depends on the batch, and so the last bits of the logits, and now and then a draw, differ between two calls.
    """

    deterministic = False

    def __init__(self, model_dir: Path, engine: EngineSettings, dtype: str):
        """Load the model; `dtype` is the setting `model.dtype`.

        Raises `MissingPackageError` without vLLM, `ModelError` for a folder without context length or tokenizer, and
        `EngineError` where vLLM can't start.
        """
        self.context_length = context_length(model_dir)
        self._stop_token_ids = sorted(eos_token_ids(model_dir))
        vllm = _import_vllm()
        on_cpu = vllm.platforms.current_platform.is_cpu()
        try:
            self._llm = vllm.LLM(model=str(model_dir), **engine_arguments(engine, dtype, self.context_length, on_cpu=on_cpu))
        except Exception as error:  # vLLM raises whatever its many parts do; all of it means that there is no engine
            raise EngineError(
                f"{model_dir}: vLLM could not start ({type(error).__name__}: {error}); if memory is short, raise "
                f"engine.tensor_parallel_size (now {engine.tensor_parallel_size}), or, where others use the GPU too, "
                f"lower engine.gpu_memory_utilization (now {engine.gpu_memory_utilization:g})"
            ) from error
        self._sampling_params: type[SamplingParams] = vllm.SamplingParams

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Return one generation per request, in the requests' order.

        Raises `EngineError` for a prompt that is empty or leaves no room in the context, before any work is done, and
        where vLLM fails or gives a request up.
        """
        params = [self._params_of(index, request) for index, request in enumerate(requests)]
        if not params:
            return []
        lists = {key: list(prompt) for key, prompt in distinct_prompts(requests).items()}
        prompts = [{"prompt_token_ids": lists[id(request.prompt_token_ids)]} for request in requests]
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        except Exception as error:
            raise EngineError(f"vLLM failed on {len(requests)} requests ({type(error).__name__}: {error})") from error
        return [_generation(index, output) for index, output in enumerate(outputs)]

    def _params_of(self, index: int, request: GenerationRequest) -> "SamplingParams":
        room = self.context_length - len(request.prompt_token_ids)
        if room < 1:
            raise EngineError(
                f"request {index}: its prompt has {len(request.prompt_token_ids)} tokens and the model's context "
                f"{self.context_length}; shorten the prompt"
            )
        if not request.prompt_token_ids:
            raise EngineError(f"request {index}: its prompt is empty; a completion needs at least one token to follow")
        return self._sampling_params(
            max_tokens=min(request.max_tokens, room),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=list(request.stop_texts),
            stop_token_ids=self._stop_token_ids,
            include_stop_str_in_output=True,
            detokenize=bool(request.stop_texts),
            # A special token between two halves of a stop text keeps them apart, as in the transformers engine.
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
        )


def engine_arguments(engine: EngineSettings, dtype: str, context_length: int, *, on_cpu: bool) -> dict[str, Any]:
    """Return vLLM's arguments for a model directory, but for the directory itself; `dtype` is the setting `model.dtype`."""
    arguments = {
        "dtype": "float32" if dtype == "auto" and on_cpu else dtype,
        "max_model_len": context_length,
        "max_num_seqs": engine.max_batch_size,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "enable_prefix_caching": True,
        "load_format": "safetensors",
        "enforce_eager": on_cpu,
    }
    return arguments | (_whole_prompts(context_length) if on_cpu else {})


def _whole_prompts(context_length: int) -> dict[str, Any]:
    """Return settings by which vLLM reads no prompt in pieces.

    After a piece, vLLM sets a seeded request's generator back, which PyTorch's generators on a CPU can't do: it fails.
    """
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(_CPU_STEP_TOKENS, context_length)}


def _generation(index: int, output: "RequestOutput") -> Generation:
    (completion,) = output.outputs
    if completion.finish_reason not in ("stop", "length"):
        raise EngineError(f"request {index}: vLLM gave it up (finish_reason {completion.finish_reason!r}); run again")
    return Generation(list(completion.token_ids), completion.finish_reason)


def _import_vllm() -> Any:
    # vLLM reports usage over the network unless told otherwise; a run on private data should not.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # In a process of its own, vLLM's core would outlive a worker that is killed, and hold on to the GPU's memory.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        import vllm  # pyright: ignore[reportMissingImports]
        import vllm.platforms  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(f"engine.kind: vllm can't be imported ({error}); {INSTALL}") from error
    return vllm
