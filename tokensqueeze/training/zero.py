"""DeepSpeed ZeRO around the model: what each stage cuts, what is offloaded, and how the weights get there.

Imported in the workers alone: DeepSpeed and transformers are slow and talkative.
"""

import logging
import os
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from tokensqueeze.config import TrainingSettings
from tokensqueeze.errors import TrainingError
from tokensqueeze.objectives.sequence_logps import CompletionLogps
from tokensqueeze.training.lora import add_adapters

_ACCUMULATION_STEPS = 2
"""Any number above 1 keeps DeepSpeed's accumulation buffers on; each batch says itself which of its passes is the last."""


def load_policy(model_dir: Path, settings: TrainingSettings) -> PreTrainedModel:
    """Load the model to be trained, in training mode; under ZeRO-3 each worker gets its part of it alone."""
    # Before the weights are loaded: ZeRO-3 cuts them by the number of workers.
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    # Under ZeRO-3 this object must live while the weights are loaded, or every worker loads the whole model.
    partitioned = HfDeepSpeedConfig(deepspeed_config(settings)) if settings.zero_stage == 3 else None
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch_dtype(settings), local_files_only=True, use_safetensors=True
    )
    del partitioned
    remove_dropout(model)
    if settings.lora:
        add_adapters(model, settings.lora, seed=settings.seed)
    model.train()
    if settings.gradient_checkpointing:
        # The kind without re-entry alone works with inputs that need no gradient themselves.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def start_engine(model: PreTrainedModel, settings: TrainingSettings) -> tuple[deepspeed.DeepSpeedEngine, torch.optim.Optimizer]:
    """Return DeepSpeed's engine, whose forward pass gives completions' log-probabilities, and its optimiser.

    Raises `TrainingError` for a model that can't be read in equally many passes by every worker, under ZeRO-3.
    """
    policy = CompletionLogps(model)
    if settings.zero_stage == 3 and not policy.packs and dist.get_world_size() > 1:
        raise TrainingError(
            f"{model.config.model_type}: its attention can't be packed, so workers would need unlike numbers of passes, for "
            "which ZeRO-3 waits forever; set training.zero_stage = 2"
        )
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    engine, optimizer, *_ = deepspeed.initialize(
        model=policy,
        model_parameters=parameters,  # type: ignore[arg-type]
        config=deepspeed_config(settings),
    )
    return engine, optimizer  # type: ignore[return-value]


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """Return DeepSpeed's own settings for ours."""
    half = settings.dtype == "bfloat16"
    # At stage 0 DeepSpeed keeps no float32 copy of bfloat16 weights, and small updates would round to nothing.
    stage = 1 if half and settings.zero_stage == 0 else settings.zero_stage
    zero: dict[str, Any] = {"stage": stage}
    on_cpu = {"device": "cpu", "pin_memory": settings.gpus_per_worker > 0}
    if settings.offload != "none":
        zero["offload_optimizer"] = on_cpu
    if settings.offload == "optimizer_and_parameters":
        zero["offload_param"] = on_cpu
    # DeepSpeed's own Adam for states in the CPU's memory is several times as fast as torch's; it compiles itself on first use.
    by_cpu = settings.offload != "none" and settings.gpus_per_worker > 0
    workers = dist.get_world_size() if dist.is_initialized() else settings.num_workers
    return {
        # Sizes are said batch by batch: DeepSpeed's are for its own averaging, which is not used.
        "train_batch_size": _ACCUMULATION_STEPS * workers,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": _ACCUMULATION_STEPS,
        "gradient_clipping": settings.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "torch_adam": not by_cpu},
        },
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": half},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "steps_per_print": 2**31,
    }


def torch_dtype(settings: TrainingSettings) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]


def quieten() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        # A shared-memory extension that would be compiled on the spot; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def remove_dropout(model: PreTrainedModel) -> None:
    """The reference was scored without dropout; with it, policy and reference would differ before the first step."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Many layers keep a rate of their own for functional dropout: attention_dropout, hidden_dropout, layerdrop.
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
