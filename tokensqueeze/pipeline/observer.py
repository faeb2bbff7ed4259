"""What a run tells while it goes: a console, a log or a test listens."""

from typing import Protocol

from tokensqueeze.stages.run_stage import StageProgress, StageRecord
from tokensqueeze.training.launch import TrainingProgress


class Observer(Protocol):
    """Stages that stream into each other are under way at once: what is told of one names it."""

    def stage_started(self, name: str, number: int, of: int) -> None: ...

    def stage_progress(self, progress: StageProgress) -> None: ...

    def training_progress(self, progress: TrainingProgress) -> None: ...

    def stage_done(self, record: StageRecord) -> None: ...

    def note(self, text: str) -> None: ...


class SilentObserver:
    """Listens to nothing."""

    def stage_started(self, name: str, number: int, of: int) -> None: ...

    def stage_progress(self, progress: StageProgress) -> None: ...

    def training_progress(self, progress: TrainingProgress) -> None: ...

    def stage_done(self, record: StageRecord) -> None: ...

    def note(self, text: str) -> None: ...
