"""The model's accuracy on a few dev problems, decoded greedily: a loss can look fine on a broken model.

The workers share the problems, and the model stays where it is. ZeRO-3 has cut it up: each forward pass gathers one layer
after the other on all workers at once, so they make their passes together, empty ones too, until all have finished.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tokensqueeze.config import VerifierSettings
from tokensqueeze.engines.base import Generation, GenerationRequest
from tokensqueeze.engines.checkpoint import context_length, eos_token_ids, load_tokenizer
from tokensqueeze.engines.transformers_engine import TransformersEngine
from tokensqueeze.errors import TokenSqueezeError, TrainingError
from tokensqueeze.schema import Problem
from tokensqueeze.training.together import from_all, from_first, num_workers, raise_alike, rank
from tokensqueeze.training.training_log import DevRow
from tokensqueeze.verifiers.answers import AnswerVerifier
from tokensqueeze.verifiers.verdict import Answered

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from transformers import PreTrainedModel

_BATCH_SIZE = 64


def measure_dev_accuracy(
    engine: "DeepSpeedEngine",
    model: "PreTrainedModel",
    *,
    model_dir: Path,
    problems: Sequence[Problem],
    max_tokens: int,
    think_end: str,
    verifier: VerifierSettings,
    step: int,
) -> DevRow:
    """Decode the problems greedily and judge them; every worker calls this, and gets the same.

    `model` is inside `engine`, and is left in the mode it was in. What goes wrong on one worker is raised on all.
    """
    requests = [GenerationRequest(problem.prompt_token_ids, max_tokens, temperature=0, top_p=1, seed=0) for problem in problems]
    was_training = model.training
    model.eval()
    mine, error = _decode(engine, model, model_dir, requests[rank() :: num_workers()])
    model.train(was_training)
    raise_alike(error)
    generations: list[Generation] = [Generation([], "length")] * len(requests)
    for other, part in enumerate(from_all(mine)):
        generations[other :: num_workers()] = part
    row: DevRow | None = None
    if rank() == 0:
        try:
            judge = AnswerVerifier(verifier, think_end=think_end)
            row = _judged(problems, generations, judge, model_dir=model_dir, step=step)
        except TokenSqueezeError as raised:
            error = raised
    raise_alike(error)
    row = from_first(row)
    assert row
    return row


def check_not_collapsed(now: DevRow, *, base: DevRow, max_drop: float) -> None:
    """Raise `TrainingError` if accuracy has fallen more than `max_drop` below the base model's."""
    if base.dev_accuracy - now.dev_accuracy > max_drop:
        raise TrainingError(
            f"step {now.step}: dev accuracy fell from {base.dev_accuracy:.1%} to {now.dev_accuracy:.1%}, more than "
            f"training.max_dev_accuracy_drop = {max_drop:g}; the log has the chosen and rejected log-probabilities. "
            "Try a smaller training.learning_rate, a larger objective.beta, or a lower objective.dpo_weight"
        )


def _decode(
    engine: "DeepSpeedEngine", model: "PreTrainedModel", model_dir: Path, requests: Sequence[GenerationRequest]
) -> tuple[list[Generation], TokenSqueezeError | None]:
    """Return this worker's generations, or the error that ended them."""
    together = _PassesTogether(engine, model) if engine.zero_optimization_partition_weights() else None
    generations, error = [], None
    try:
        decoder = TransformersEngine(
            together or model,  # type: ignore[arg-type]
            eos_token_ids=eos_token_ids(model_dir),
            context_length=context_length(model_dir),
            max_batch_size=_BATCH_SIZE,
        )
        generations = decoder.generate(requests)
    except TokenSqueezeError as raised:
        error = raised
    if together:
        together.finish()
    return generations, error


class _PassesTogether:
    """A model cut up by ZeRO-3, as the decoding engine sees it: each pass is one that all workers make.

    Whatever is asked for, the whole model runs, so that the same layers follow each other everywhere.
    """

    def __init__(self, engine: "DeepSpeedEngine", model: "PreTrainedModel"):
        self._offload, self._model = engine.optimizer.parameter_offload, model  # type: ignore[union-attr]
        self._device = torch.device(engine.device)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def device(self) -> torch.device:
        """Where a layer is while it runs, which need not be where its pieces are kept."""
        return self._device

    def __call__(self, **inputs: Any) -> Any:
        self._anyone_working(True)
        return self._pass(**inputs)

    def base_model(self, **inputs: Any) -> Any:
        """Run the LM head too, on one position, for the others wait for it."""
        return self(**inputs, logits_to_keep=1)

    def finish(self) -> None:
        """Make empty passes until no worker is left that needs them, and let go of every layer."""
        token_11 = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        with torch.no_grad():
            while self._anyone_working(False):
                self._pass(input_ids=token_11, use_cache=False)
        # The engine decodes in inference mode: a layer gathered there and kept would take no part in gradients.
        self._offload.partition_all_parameters()

    def _anyone_working(self, working: bool) -> bool:
        """Ask all workers; each asks before each of its passes."""
        count = torch.tensor(int(working), device=self._device)
        dist.all_reduce(count)
        return bool(count)

    def _pass(self, **inputs: Any) -> Any:
        # DeepSpeed foresees which layer comes next, counted from where it thinks that a pass begins.
        self._offload.get_param_coordinator().reset_step()
        return self._model(**inputs)


def _judged(
    problems: Sequence[Problem], generations: Sequence[Generation], judge: AnswerVerifier, *, model_dir: Path, step: int
) -> DevRow:
    end_ids = eos_token_ids(model_dir)
    answered = [
        Answered(_text(generation, model_dir, end_ids), problem.gold_answer, generation.finish_reason, problem.answer_kind)
        for problem, generation in zip(problems, generations, strict=True)
    ]
    with judge:
        judgements = judge.judge(answered)
    return DevRow(
        step=step,
        dev_accuracy=fmean(judgement.verdict == "correct" for judgement in judgements),
        dev_length=fmean(len(generation.token_ids) for generation in generations),
    )


def _text(generation: Generation, model_dir: Path, end_ids: frozenset[int]) -> str:
    token_ids = generation.token_ids
    if token_ids and token_ids[-1] in end_ids:
        token_ids = token_ids[:-1]
    text = load_tokenizer(model_dir).decode(token_ids, skip_special_tokens=False)
    return text if isinstance(text, str) else "".join(text)
