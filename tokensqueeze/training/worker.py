"""What every training worker does: one DeepSpeed engine over all of them, one loop over the planned batches.

The loss is a sum over the batch's pairs divided by figures of the whole batch, so it is the same however the batch is
split into micro-batches and workers. Imported in the workers alone: DeepSpeed and transformers are slow and talkative.
"""

import logging
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from tokensqueeze.config import TrainingSettings
from tokensqueeze.engines.checkpoint import load_model
from tokensqueeze.errors import TrainingError
from tokensqueeze.objectives.objective import CompletionScores, PairLoss, needs_rejected, pair_loss
from tokensqueeze.objectives.sequence_logps import completion_logps
from tokensqueeze.training import training_log
from tokensqueeze.training.batches import Batch, MicroBatch, batches, micro_batches
from tokensqueeze.training.checkpoints import load_checkpoint, save_checkpoint
from tokensqueeze.training.collate import collate
from tokensqueeze.training.dev_accuracy import check_not_collapsed, measure_dev_accuracy
from tokensqueeze.training.export import export_model
from tokensqueeze.training.job import TrainingJob
from tokensqueeze.training.pairs import usable_pairs
from tokensqueeze.training.schedule import learning_rate_at
from tokensqueeze.training.training_log import DevRow, StepRow

_MEANS = (
    "loss",
    "sft_loss",
    "chosen_logps",
    "ref_chosen_logps",
    "dpo_loss",
    "rejected_logps",
    "ref_rejected_logps",
    "margin",
    "preference_accuracy",
)
_STALE_REFERENCE = 0.05
"""Nats per token. Two number types differ by far less over a whole batch, two models by more."""
_IDS_NAMED = 8


def run_worker(job: TrainingJob) -> None:
    """Train from the model or a checkpoint to the end, log, save, export. Every worker runs this."""
    _quieten()
    settings = job.settings
    usable = usable_pairs(job.pairs, max_length=settings.max_length, needs_rejected=needs_rejected(job.objective))
    planned = batches(usable.pairs, batch_size=settings.batch_size, epochs=settings.epochs, seed=settings.seed)
    worker = Worker.start(job)
    done = 0
    if job.resume_step is None:
        worker.look_at_dev(0)
    else:
        load_checkpoint(worker.engine, job.checkpoints_dir, step=job.resume_step)
        done = job.resume_step
    for batch in planned[done:]:
        worker.log(worker.train_step(batch, steps=len(planned)))
        last = batch.step == len(planned)
        if last or batch.step % settings.dev_every == 0:
            worker.look_at_dev(batch.step)
        if last or batch.step % settings.checkpoint_every == 0:
            worker.save(batch.step)
    worker.export()


class Policy(torch.nn.Module):
    """The model as DeepSpeed sees it: its forward pass gives the completions' log-probabilities."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, token_ids_BT: torch.Tensor, prompt_lengths_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return completion_logps(self.model, token_ids_BT=token_ids_BT, prompt_lengths_B=prompt_lengths_B, lengths_B=lengths_B)


@dataclass(frozen=True)
class Worker:
    job: TrainingJob
    engine: deepspeed.DeepSpeedEngine
    model: PreTrainedModel
    """Inside the engine; under ZeRO-3 its tensors are empty between passes."""
    optimizer: torch.optim.Optimizer
    device: torch.device

    @classmethod
    def start(cls, job: TrainingJob) -> "Worker":
        config = deepspeed_config(job.settings)
        # Before the weights are loaded: ZeRO-3 cuts them by the number of workers.
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        # Under ZeRO-3 this object must live while the weights are loaded, or every worker loads the whole model.
        partitioned = HfDeepSpeedConfig(config) if job.settings.zero_stage == 3 else None
        model = AutoModelForCausalLM.from_pretrained(
            job.model_dir, dtype=_dtype(job.settings), local_files_only=True, use_safetensors=True
        )
        del partitioned
        _remove_dropout(model)
        model.train()
        if job.settings.gpus_per_worker:
            # Long traces: on a GPU it is memory that runs out first.
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        engine, optimizer, *_ = deepspeed.initialize(model=Policy(model), config=config)
        return cls(job, engine, model, optimizer, torch.device(engine.device))  # type: ignore[arg-type]

    def train_step(self, batch: Batch, *, steps: int) -> StepRow:
        """Do one optimiser step. Raises `TrainingError` if loss or gradient is not finite, or the reference stale."""
        started = time.monotonic()
        settings = self.job.settings
        learning_rate = learning_rate_at(
            batch.step,
            steps=steps,
            peak=settings.learning_rate,
            warmup_ratio=settings.warmup_ratio,
            schedule=settings.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        shares = micro_batches(
            batch,
            micro_batch_size=settings.micro_batch_size,
            num_workers=dist.get_world_size(),
            rank=dist.get_rank(),
        )
        totals = torch.zeros(len(_MEANS), dtype=torch.float64, device=self.device)
        for index, share in enumerate(shares):
            # Said by hand because the last batch of an epoch has fewer micro-batches.
            self.engine.set_gradient_accumulation_boundary(index == len(shares) - 1)
            totals += self._forward_backward(share, batch)
        dist.all_reduce(totals)
        means = dict[str, float](zip(_MEANS, totals.tolist(), strict=True))
        if batch.step == 1:
            self._check_reference(means, batch)
        return StepRow(
            step=batch.step,
            epoch=batch.epoch,
            **{name: self._if_measured(name, mean) for name, mean in means.items()},  # type: ignore[arg-type]
            grad_norm=self._update(batch),
            learning_rate=learning_rate,
            tokens=batch.num_tokens,
            seconds=time.monotonic() - started,
        )

    def look_at_dev(self, step: int) -> None:
        """Measure and log the dev accuracy. Raises `TrainingError` on the first worker if it has collapsed."""
        job = self.job
        if not job.dev_problems:
            return
        model = self._whole_model()
        if model is not None:
            row = measure_dev_accuracy(
                model,
                model_dir=job.model_dir,
                problems=job.dev_problems,
                max_tokens=job.dev_max_tokens,
                think_end=job.think_end,
                step=step,
            )
            self.log(row)
            base = training_log.dev_rows(job.log_path)[0]
            check_not_collapsed(row, base=base, max_drop=job.settings.max_dev_accuracy_drop)
        dist.barrier()

    def log(self, row: StepRow | DevRow) -> None:
        if dist.get_rank() == 0:
            training_log.append(self.job.log_path, row)

    def save(self, step: int) -> None:
        if dist.get_rank() == 0:
            training_log.flush_to_disk(self.job.log_path)
        save_checkpoint(self.engine, self.job.checkpoints_dir, step=step, job_name=self.job.name)

    def export(self) -> None:
        model = self._whole_model()
        if model is not None:
            export_model(model, base_dir=self.job.model_dir, target_dir=self.job.exported_dir)
        dist.barrier()

    def _forward_backward(self, share: MicroBatch, batch: Batch) -> torch.Tensor:
        """Add one micro-batch's gradient; return its part of the batch's means."""
        tensors = collate(share.pairs, device=self.device)
        logps_R = self.engine(tensors.token_ids_RT, tensors.prompt_lengths_R, tensors.lengths_R)
        sides = [
            CompletionScores(logps_B=logps_B, ref_logps_B=ref_logps_B, num_tokens_B=num_tokens_B)
            for logps_B, ref_logps_B, num_tokens_B in zip(
                logps_R.split(len(share.pairs)),
                tensors.ref_logps_R.split(len(share.pairs)),
                tensors.num_tokens_R.split(len(share.pairs)),
                strict=True,
            )
        ]
        result = pair_loss(
            self.job.objective,
            chosen=sides[0],
            rejected=sides[1] if len(sides) == 2 else None,
            batch_pairs=len(batch.pairs),
            batch_chosen_tokens=batch.chosen_tokens,
        )
        if not torch.isfinite(result.loss):
            raise TrainingError(
                f"step {batch.step}: the loss is {result.loss.item()} on {_ids(share.pairs)} "
                f"(chosen log-probability {result.chosen_logps.item():.4g}); {_WAYS_OUT}"
            )
        # DeepSpeed averages over the workers; a batch's loss is their sum.
        weight = 0.0 if share.filler else float(dist.get_world_size())
        self.engine.backward(result.loss * weight, scale_wrt_gas=False)
        return torch.zeros(len(_MEANS), dtype=torch.float64, device=self.device) if share.filler else _means(result)

    def _update(self, batch: Batch) -> float:
        """Clip, step, and return the gradient's norm before clipping."""
        settings = self.job.settings
        norm = None
        if settings.zero_stage == 0 and settings.dtype == "float32":
            # DeepSpeed tells no norm in this one case.
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        self.engine.step()
        if norm is None:
            norm = float(self.engine.get_global_grad_norm() or 0.0) if self.engine.was_step_applied() else math.inf
        if not math.isfinite(norm):
            raise TrainingError(f"step {batch.step}: the gradient's norm is {norm} on {_ids(batch.pairs)}; {_WAYS_OUT}")
        return norm

    def _check_reference(self, means: dict[str, float], batch: Batch) -> None:
        """Before the first update the policy is the reference, so what they say must agree."""
        if not needs_rejected(self.job.objective):
            return
        tokens = {"chosen": batch.chosen_tokens, "rejected": sum(len(p.sides[1].token_ids) for p in batch.pairs)}
        for side, count in tokens.items():
            policy, reference = means[f"{side}_logps"], means[f"ref_{side}_logps"]
            if abs(policy - reference) * len(batch.pairs) > _STALE_REFERENCE * count:
                raise TrainingError(
                    f"step 1: ref_{side}_logps is {reference:.4g} on average, but {self.job.model_dir} gives "
                    f"{policy:.4g}; the scores are another model's; delete the scored_pairs table and run again"
                )

    def _if_measured(self, name: str, mean: float) -> float | None:
        pairwise = ("dpo_loss", "rejected_logps", "ref_rejected_logps", "margin", "preference_accuracy")
        return None if name in pairwise and not needs_rejected(self.job.objective) else mean

    def _whole_model(self) -> PreTrainedModel | None:
        """Return a model with all its weights on the first worker, None elsewhere. Every worker calls this."""
        first = dist.get_rank() == 0
        if self.job.settings.zero_stage < 3:
            return self.model if first else None
        state = self.engine._zero3_consolidated_16bit_state_dict()
        if state is None:
            return None
        model = load_model(self.job.model_dir, _dtype(self.job.settings))
        prefix = "model."
        model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
        return model.to(self.device)  # type: ignore[arg-type]


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """Return DeepSpeed's own settings for ours."""
    per_pass = settings.micro_batch_size * settings.num_workers
    half = settings.dtype == "bfloat16"
    # At stage 0 DeepSpeed keeps no float32 copy of bfloat16 weights, and small updates would round to nothing.
    stage = 1 if half and settings.zero_stage == 0 else settings.zero_stage
    return {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.batch_size // per_pass,
        "gradient_clipping": settings.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            # torch's own: DeepSpeed's needs a compiler on the machine.
            "params": {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "torch_adam": True},
        },
        "bf16": {"enabled": half},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": stage},
        "steps_per_print": 2**31,
    }


_WAYS_OUT = 'try a smaller training.learning_rate, or training.dtype = "float32"'


def _dtype(settings: TrainingSettings) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]


def _means(result: PairLoss) -> torch.Tensor:
    values = [getattr(result, name) for name in _MEANS]
    zero = torch.zeros_like(result.sft_loss)
    return torch.stack([zero if value is None else value.detach() for value in values])


def _ids(pairs: list[Any]) -> str:
    named = ", ".join(pair.pair_id for pair in pairs[:_IDS_NAMED])
    more = len(pairs) - _IDS_NAMED
    return f"{'pair' if len(pairs) == 1 else 'pairs'} {named}" + (f" and {more} more" if more > 0 else "")


def _remove_dropout(model: PreTrainedModel) -> None:
    """The reference was scored without dropout; with it, policy and reference would differ before the first step."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _quieten() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        # A shared-memory extension that would be compiled on the spot; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
