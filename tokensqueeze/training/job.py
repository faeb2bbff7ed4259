"""What a training is asked to do, as the driver hands it to its workers; its paths are on storage all nodes see."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokensqueeze.config import ObjectiveSettings, TrainingSettings, VerifierSettings
from tokensqueeze.engines.checkpoint import context_length
from tokensqueeze.fingerprint import fingerprint, model_fingerprint
from tokensqueeze.schema import Problem, ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training.pairs import UsablePairs

DEFAULT_VERIFIER = VerifierSettings()


@dataclass(frozen=True)
class TrainingJob:
    pairs: Table[ScoredPair]
    settings: TrainingSettings
    objective: ObjectiveSettings
    model_dir: Path
    output_dir: Path
    dev_problems: Sequence[Problem]
    think_end: str
    """Text that ends the thinking block."""
    name: str
    """A fingerprint of all that weights and log depend on."""
    verifier: VerifierSettings = DEFAULT_VERIFIER
    """How the dev problems' answers are judged."""

    @property
    def log_path(self) -> Path:
        return self.output_dir / "training_log.jsonl"

    @property
    def checkpoints_dir(self) -> Path:
        return self.output_dir / "checkpoints"

    @property
    def exported_dir(self) -> Path:
        return self.output_dir / "model"

    def saves_after(self, step: int, *, steps: int) -> bool:
        """Whether a checkpoint is due: also wherever dev accuracy is measured, if the best one is to be exported."""
        measured = self.settings.export == "best" and bool(self.dev_problems) and step % self.settings.dev_every == 0
        return step == steps or step % self.settings.checkpoint_every == 0 or measured


def longest_sequence(settings: TrainingSettings, model_dir: Path) -> int:
    """Return how many tokens a side may have with its prompt: no more than the settings allow, nor than the model takes."""
    return min(settings.max_length, context_length(model_dir))


class Preempted(Exception):
    """The workers are being taken away; a checkpoint of this very step was saved."""


def job_name(
    *,
    settings: TrainingSettings,
    objective: ObjectiveSettings,
    model_dir: Path,
    usable: UsablePairs,
    dev_problems: Sequence[Problem] = (),
    think_end: str = "",
    verifier: VerifierSettings = DEFAULT_VERIFIER,
) -> str:
    """Return a fingerprint of all that weights and log depend on; how often to save, on what, and which to export, is not."""
    pairs = hashlib.sha256()
    for pair in sorted(usable.pairs, key=lambda pair: pair.pair_id):
        pairs.update(pair.pair_id.encode())
        for side in pair.sides:
            pairs.update(pair.prompt_token_ids.tobytes() + side.token_ids.tobytes() + repr(side.ref_logps).encode())
    return fingerprint(
        {
            "settings": {name: value for name, value in settings.decisive().items() if name != "export"},
            "objective": objective.model_dump(),
            "model": model_fingerprint(model_dir),
            "pairs": pairs.hexdigest(),
            "dev": [[problem.prompt_token_ids, problem.gold_answer, problem.answer_kind] for problem in dev_problems],
            "judged": [think_end, verifier.model_dump()],
        }
    )
