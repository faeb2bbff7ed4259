"""Either trainer doing a task: the package's, in one process without Ray, or TRL's `DPOTrainer`.

    python -m benchmarks.training_sides TASK.json OUTCOME.json

A fresh process for each, so that peak memory is the trainer's own. Needs Linux, which tells a process's peak.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.training_task import LONGEST, Outcome, Step, Task, planned_batches, real_tokens

if TYPE_CHECKING:
    from tokensqueeze.training.pairs import EncodedPair


def main() -> None:
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    import torch

    torch.set_num_threads(task.threads)
    outcome = {"tokensqueeze": with_tokensqueeze, "trl": with_trl}[task.trainer](task)
    Path(sys.argv[2]).write_text(json.dumps(asdict(outcome)))


def with_tokensqueeze(task: Task) -> Outcome:
    """Train with what each of Ray Train's workers runs, step by step."""
    # What Ray Train tells its workers, for a single one.
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    import torch.distributed as dist

    from tokensqueeze.config import DPO, DPOLengthSFT, TrainingSettings
    from tokensqueeze.schema import ScoredPair
    from tokensqueeze.tables import Table
    from tokensqueeze.training.job import TrainingJob
    from tokensqueeze.training.worker import Worker
    from tokensqueeze.training.zero import quieten

    quieten()
    imported_bytes = peak_bytes()
    output_dir = Path(task.output_dir)
    output_dir.mkdir(parents=True)
    dist.init_process_group("gloo", init_method=f"file://{output_dir / 'rendezvous'}", world_size=1, rank=0)
    job = TrainingJob(
        pairs=Table(Path(task.pairs_dir), ScoredPair),
        settings=TrainingSettings(
            learning_rate=task.learning_rate,
            batch_size=task.pairs_per_step,
            micro_batch_tokens=task.at_once,
            warmup_ratio=0,
            schedule="constant",
            max_length=LONGEST,
            dtype="float32",
            zero_stage=0,
            gradient_checkpointing=task.gradient_checkpointing,
            activation_gib=task.activation_gib,
        ),
        objective=DPOLengthSFT(beta=task.beta, length_weight=0, dpo_weight=0.5) if task.with_sft else DPO(beta=task.beta),
        model_dir=Path(task.model_dir),
        output_dir=output_dir,
        dev_problems=[],
        think_end="</think>",
        name="train_vs_trl",
    )
    planned = planned_batches(task)
    worker = Worker.start(job)
    rows = [worker.train_step(batch, steps=len(planned)) for batch in planned]
    peak = peak_bytes()
    dist.destroy_process_group()
    steps = [
        Step(row.loss, row.grad_norm, real_tokens(batch.pairs), row.seconds) for row, batch in zip(rows, planned, strict=True)
    ]
    return Outcome(steps, imported_bytes, peak)


def with_trl(task: Task) -> Outcome:
    """Train with TRL's `DPOTrainer` on the same token ids and reference scores, in the same order."""
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    try:
        import datasets  # pyright: ignore[reportMissingImports]
        from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SystemExit(f"TRL is missing ({error}); pip install 'tokensqueeze[bench]'") from error

    imported_bytes = peak_bytes()
    planned = planned_batches(task)

    class TokenisedTrainer(DPOTrainer):
        """Takes rows that are tokenised and scored already."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.started = 0.0
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.monotonic() - self.started)

    datasets.disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(task.model_dir, dtype=torch.float32, local_files_only=True)
    stopwatch = Stopwatch()
    trainer = TokenisedTrainer(
        model=model,
        args=DPOConfig(
            output_dir=task.output_dir,
            loss_type=["sigmoid", "sft"] if task.with_sft else ["sigmoid"],
            loss_weights=[0.5, 0.5] if task.with_sft else None,
            beta=task.beta,
            learning_rate=task.learning_rate,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            per_device_train_batch_size=task.at_once,
            gradient_accumulation_steps=task.pairs_per_step // task.at_once,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            max_length=LONGEST,
            precompute_ref_log_probs=True,
            gradient_checkpointing=task.gradient_checkpointing,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list([_trl_row(pair) for batch in planned for pair in batch.pairs]),
        processing_class=AutoTokenizer.from_pretrained(task.model_dir, local_files_only=True),
        callbacks=[stopwatch],
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "grad_norm" in row]
    steps = [
        Step(row["loss"], row["grad_norm"], real_tokens(batch.pairs), seconds)
        for row, batch, seconds in zip(logged, planned, stopwatch.seconds, strict=True)
    ]
    return Outcome(steps, imported_bytes, peak_bytes())


def _trl_row(pair: "EncodedPair") -> dict[str, Any]:
    assert pair.rejected is not None
    return {
        "prompt_ids": pair.prompt_token_ids.tolist(),
        "chosen_ids": pair.chosen.token_ids.tolist(),
        "rejected_ids": pair.rejected.token_ids.tolist(),
        "ref_chosen_logps": pair.chosen.ref_logps,
        "ref_rejected_logps": pair.rejected.ref_logps,
    }


def peak_bytes() -> int:
    """Return the peak of this process's resident memory; that of `getrusage` may be its parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
