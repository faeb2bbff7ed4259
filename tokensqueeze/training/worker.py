"""What every training worker does: one DeepSpeed engine over all of them, one loop over the planned batches.

The loss is a sum over the batch's pairs divided by figures of the whole batch, so it is the same however the batch is
split into micro-batches and workers. Imported in the workers alone: DeepSpeed and transformers are slow and talkative.
"""

import math
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from tokensqueeze.errors import TrainingError
from tokensqueeze.objectives.objective import CompletionScores, PairLoss, needs_reference, needs_rejected, pair_loss
from tokensqueeze.objectives.packing import can_be_packed, packed_attention
from tokensqueeze.training import training_log
from tokensqueeze.training.batches import Batch, MicroBatch, batches, micro_batches
from tokensqueeze.training.checkpoints import best_checkpoint, complete_checkpoints, go_back, load_checkpoint, save_checkpoint
from tokensqueeze.training.collate import PairTensors, collate
from tokensqueeze.training.dev_accuracy import check_not_collapsed, measure_dev_accuracy
from tokensqueeze.training.export import check_exportable, export_model
from tokensqueeze.training.guards import (
    DriftWatch,
    Evidence,
    ScoredMicroBatch,
    dev_accuracy_warning,
    not_finite,
    save_evidence,
)
from tokensqueeze.training.job import Preempted, TrainingJob, longest_sequence
from tokensqueeze.training.pairs import usable_pairs
from tokensqueeze.training.recompute import Recompute
from tokensqueeze.training.schedule import learning_rate_at
from tokensqueeze.training.together import from_all, from_first
from tokensqueeze.training.training_log import PairsRow, Row, StepRow
from tokensqueeze.training.zero import load_policy, quieten, start_engine

_MEANS = (
    "loss",
    "sft_loss",
    "chosen_logps",
    "ref_chosen_logps",
    "dpo_loss",
    "rejected_logps",
    "ref_rejected_logps",
    "chosen_reward",
    "rejected_reward",
    "margin",
    "preference_accuracy",
)
_STALE_REFERENCE = 0.05
"""Nats per token. Two number types differ by far less over a whole batch, two models by more."""
_IDS_NAMED = 8


def run_worker(job: TrainingJob, *, preempted: Callable[[], bool] = lambda: False) -> None:
    """Train from the model or a checkpoint to the end, log, save, export. Every worker runs this.

    Asked after every step, `preempted` says, alike on every worker, whether one of them is about to be taken away; then a
    checkpoint is saved and `Preempted` raised. Needs torch's process group and what it tells in the environment, not Ray.
    """
    quieten()
    settings = job.settings
    usable = usable_pairs(
        job.pairs,
        max_length=longest_sequence(settings, job.model_dir),
        needs_rejected=needs_rejected(job.objective),
        needs_reference=needs_reference(job.objective),
    )
    planned = batches(usable.pairs, batch_size=settings.batch_size, epochs=settings.epochs, seed=settings.seed)
    worker = Worker.start(job)
    # At every start anew: Ray Train may have replaced workers since the last one.
    start = from_first(go_back(job) if dist.get_rank() == 0 else None)
    if start is None:
        worker.log(PairsRow(0, len(usable.pairs), usable.left_out_counts))
        worker.look_at_dev(0)
    else:
        load_checkpoint(worker.engine, start)
    so_far = from_first(training_log.read(job.log_path) if dist.get_rank() == 0 else [])
    # Where the objective needs no reference, its scores may be anything.
    watch = DriftWatch(settings, usable.pairs, so_far) if needs_reference(job.objective) else None
    for batch in planned[start.step if start else 0 :]:
        row = worker.train_step(batch, steps=len(planned))
        worker.log(row)
        for warning in watch.see(row) if watch else ():
            worker.log(warning)
        last = batch.step == len(planned)
        if last or batch.step % settings.dev_every == 0:
            worker.look_at_dev(batch.step)
        leaving = preempted() and not last
        if leaving or job.saves_after(batch.step, steps=len(planned)):
            worker.save(batch.step)
        if leaving:
            raise Preempted(f"after step {batch.step}")
    if settings.export == "best":
        worker.return_to_best()
    worker.export()


@dataclass(frozen=True)
class Worker:
    job: TrainingJob
    engine: deepspeed.DeepSpeedEngine
    model: PreTrainedModel
    """Inside the engine; under ZeRO-3 its tensors are empty between passes."""
    optimizer: torch.optim.Optimizer
    device: torch.device
    recompute: Recompute | None
    """None where no activation is computed again."""
    seen: list[ScoredMicroBatch] = field(default_factory=list)
    """What this worker has scored of the step it is at."""

    @classmethod
    def start(cls, job: TrainingJob) -> "Worker":
        model = load_policy(job.model_dir, job.settings)
        check_exportable(model, job.model_dir)
        engine, optimizer = start_engine(model, job.settings)
        recompute = None
        if job.settings.gradient_checkpointing:
            recompute = Recompute(model, budget_bytes=job.settings.activation_gib * 2**30)
        return cls(job, engine, model, optimizer, torch.device(engine.device), recompute)  # type: ignore[arg-type]

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
        by_rank = [
            micro_batches(batch, max_tokens=settings.micro_batch_tokens, num_workers=dist.get_world_size(), rank=rank)
            for rank in range(dist.get_world_size())
        ]
        totals = torch.zeros(len(_MEANS), dtype=torch.float64, device=self.device)
        self.seen.clear()
        for shares in zip(*by_rank, strict=True):
            share = shares[dist.get_rank()]
            # Said by hand because the last batch of an epoch has fewer micro-batches.
            self.engine.set_gradient_accumulation_boundary(share is by_rank[dist.get_rank()][-1])
            if self.recompute:
                # Alike on all workers: under ZeRO-3 a layer that is computed again is gathered again.
                self.recompute.prepare(max(share.num_tokens for share in shares))
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
            max_memory_bytes=self._max_memory_bytes(),
        )

    def look_at_dev(self, step: int) -> None:
        """Measure and log the dev accuracy. Raises `TrainingError`, on every worker, if it has collapsed."""
        job = self.job
        if not job.dev_problems:
            return
        row = measure_dev_accuracy(
            self.engine,
            self.model,
            model_dir=job.model_dir,
            problems=job.dev_problems,
            max_tokens=job.settings.dev_max_tokens,
            think_end=job.think_end,
            verifier=job.verifier,
            step=step,
        )
        self.log(row)
        # The first worker's log: on another node the others may not see its last line yet.
        (base,) = from_first(training_log.dev_rows(job.log_path)[:1] if dist.get_rank() == 0 else [])
        max_drop = job.settings.max_dev_accuracy_drop
        check_not_collapsed(row, base=base, max_drop=max_drop)
        if dist.get_rank() == 0:
            warning = dev_accuracy_warning(row, so_far=training_log.read(job.log_path), max_drop=max_drop)
            if warning:
                self.log(warning)

    def log(self, row: Row) -> None:
        if dist.get_rank() == 0:
            training_log.append(self.job.log_path, row)

    def save(self, step: int) -> None:
        job, dev = self.job, None
        if dist.get_rank() == 0:
            training_log.flush_to_disk(job.log_path)
            dev = next((row for row in training_log.dev_rows(job.log_path) if row.step == step), None)
        save_checkpoint(
            self.engine,
            job.checkpoints_dir,
            step=step,
            job_name=job.name,
            keep=job.settings.keep_checkpoints,
            dev=dev,
        )

    def return_to_best(self) -> None:
        """Take back the weights of the best dev accuracy. Every worker calls this."""
        best = from_first(best_checkpoint(complete_checkpoints(self.job.checkpoints_dir)) if dist.get_rank() == 0 else None)
        if best:
            load_checkpoint(self.engine, best)

    def export(self) -> None:
        export_model(self.model, base_dir=self.job.model_dir, target_dir=self.job.exported_dir)

    def _forward_backward(self, share: MicroBatch, batch: Batch) -> torch.Tensor:
        """Add one micro-batch's gradient; return its part of the batch's means."""
        tensors = collate(share.pairs, device=self.device)
        # Around the backward pass too, which may compute activations again.
        with packed_attention(self.model) if can_be_packed(self.model) else nullcontext():
            logps_S = self.engine(tensors.packed)
            chosen, *rejected = _sides(logps_S, tensors, num_sides=len(share.pairs[0].sides))
            result = pair_loss(
                self.job.objective,
                chosen=chosen,
                rejected=rejected[0] if rejected else None,
                batch_pairs=len(batch.pairs),
                batch_chosen_tokens=batch.chosen_tokens,
            )
            if not share.filler:
                self.seen.append(ScoredMicroBatch.of(share.pairs, chosen, rejected[0] if rejected else None))
            if not torch.isfinite(result.loss):
                what = f"the loss is {result.loss.item()} on {_ids(share.pairs)}"
                raise self._not_finite(batch, what, self._figures(), gradients_not_finite=None)
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
        broken = None
        if norm is None or math.isfinite(norm):
            self.engine.step()
        else:
            broken = not_finite((name, parameter.grad) for name, parameter in self.model.named_parameters())
        if norm is None:
            norm = float(self.engine.get_global_grad_norm() or 0.0) if self.engine.was_step_applied() else math.inf
        # DeepSpeed says −1 where it skipped a step.
        if not (math.isfinite(norm) and norm >= 0):
            figures = [row for rows in from_all(self._figures()) for row in rows]
            what = f"the gradient's norm is {norm} on {_ids(batch.pairs)}"
            raise self._not_finite(batch, what, figures, gradients_not_finite=broken)
        return norm

    def _not_finite(
        self, batch: Batch, what: str, figures: list[dict[str, Any]], *, gradients_not_finite: list[str] | None
    ) -> TrainingError:
        """Save what is known of the step, and return the error to raise."""
        # Under ZeRO-3 a worker holds pieces, that of another may be the broken one.
        whole = self.job.settings.zero_stage < 3
        evidence = Evidence(
            step=batch.step,
            what=what,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            pairs=figures,
            gradients_not_finite=gradients_not_finite,
            weights_not_finite=not_finite(self.model.named_parameters()) if whole else None,
        )
        path = save_evidence(evidence, log_path=self.job.log_path)
        return TrainingError(f"step {batch.step}: {what}; what is known of the step is in {path}; {_WAYS_OUT}")

    def _figures(self) -> list[dict[str, Any]]:
        return [figures for scored in self.seen for figures in scored.figures()]

    def _max_memory_bytes(self) -> int:
        """Return the most that any worker has held so far."""
        if self.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self.device)
        else:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        shared = torch.tensor(most, dtype=torch.int64, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def _check_reference(self, means: dict[str, float], batch: Batch) -> None:
        """Before the first update the policy is the reference, so what they say must agree."""
        if not needs_reference(self.job.objective):
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
        alone = ("loss", "sft_loss", "chosen_logps", "ref_chosen_logps")
        if name not in alone and not needs_rejected(self.job.objective):
            return None
        # Reference scores that the objective can do without may be missing.
        return None if name.startswith("ref_") and math.isnan(mean) else mean


_WAYS_OUT = 'try a smaller training.learning_rate, or training.dtype = "float32"'


def _sides(logps_S: torch.Tensor, tensors: PairTensors, *, num_sides: int) -> list[CompletionScores]:
    """Return the scores of all chosen sides, and of all rejected ones where there are any."""
    return [
        CompletionScores(
            logps_B=logps_S[side::num_sides],
            ref_logps_B=tensors.ref_logps_S[side::num_sides],
            num_tokens_B=tensors.num_tokens_S[side::num_sides],
        )
        for side in range(num_sides)
    ]


def _means(result: PairLoss) -> torch.Tensor:
    values = [getattr(result, name) for name in _MEANS]
    zero = torch.zeros_like(result.sft_loss)
    return torch.stack([zero if value is None else value.detach() for value in values])


def _ids(pairs: list[Any]) -> str:
    named = ", ".join(pair.pair_id for pair in pairs[:_IDS_NAMED])
    more = len(pairs) - _IDS_NAMED
    return f"{'pair' if len(pairs) == 1 else 'pairs'} {named}" + (f" and {more} more" if more > 0 else "")
