"""The model's accuracy on a few dev problems, decoded greedily: a loss can look fine on a broken model."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from tokensqueeze.engines.base import Generation, GenerationRequest
from tokensqueeze.engines.checkpoint import context_length, eos_token_ids, load_tokenizer
from tokensqueeze.engines.transformers_engine import TransformersEngine
from tokensqueeze.errors import TrainingError
from tokensqueeze.schema import Problem
from tokensqueeze.training.training_log import DevRow
from tokensqueeze.verifiers.math_answer import MathVerifier
from tokensqueeze.verifiers.verdict import Answered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VERDICT_SECONDS = 5


def measure_dev_accuracy(
    model: "PreTrainedModel",
    *,
    model_dir: Path,
    problems: Sequence[Problem],
    max_tokens: int,
    think_end: str,
    step: int,
) -> DevRow:
    """Decode the problems greedily and judge them; the model is left in the mode it was in."""
    end_ids = eos_token_ids(model_dir)
    engine = TransformersEngine(model, eos_token_ids=end_ids, context_length=context_length(model_dir), max_batch_size=64)
    requests = [GenerationRequest(problem.prompt_token_ids, max_tokens, temperature=0, top_p=1, seed=0) for problem in problems]
    was_training = model.training
    model.eval()
    generations = engine.generate(requests)
    model.train(was_training)
    answered = [
        Answered(_text(generation, model_dir, end_ids), problem.gold_answer, generation.finish_reason)
        for problem, generation in zip(problems, generations, strict=True)
    ]
    with MathVerifier(timeout_seconds=_VERDICT_SECONDS, think_end=think_end) as verifier:
        judgements = verifier.judge(answered)
    return DevRow(
        step=step,
        dev_accuracy=fmean(judgement.verdict == "correct" for judgement in judgements),
        dev_length=fmean(len(generation.token_ids) for generation in generations),
    )


def check_not_collapsed(now: DevRow, *, base: DevRow, max_drop: float) -> None:
    """Raise `TrainingError` if accuracy has fallen more than `max_drop` below the base model's."""
    if base.dev_accuracy - now.dev_accuracy > max_drop:
        raise TrainingError(
            f"step {now.step}: dev accuracy fell from {base.dev_accuracy:.1%} to {now.dev_accuracy:.1%}, more than "
            f"training.max_dev_accuracy_drop = {max_drop:g}; the log has the chosen and rejected log-probabilities. "
            "Try a smaller training.learning_rate, a larger objective.beta, or a lower objective.dpo_weight"
        )


def _text(generation: Generation, model_dir: Path, end_ids: frozenset[int]) -> str:
    token_ids = generation.token_ids
    if token_ids and token_ids[-1] in end_ids:
        token_ids = token_ids[:-1]
    text = load_tokenizer(model_dir).decode(token_ids, skip_special_tokens=False)
    return text if isinstance(text, str) else "".join(text)
