"""What a verifier is asked, and what it answers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tokensqueeze.schema import AnswerKind, FinishReason, Verdict

VERDICT_RULES = 1
"""Part of the fingerprint of all that holds verdicts: raised when the code gives other ones for the same settings."""


@dataclass(frozen=True)
class Answered:
    """One completion and the answer it should have come to."""

    text: str
    gold_answer: str
    finish_reason: FinishReason
    answer_kind: AnswerKind = "math"


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    extracted_answer: str | None
    cause: str | None
    """Why the verdict is not a plain one: `truncated`, `no_boxed`, `no_answer_found`, `too_long`, `timeout`, `crash`, `gold`,
    `error: <type>`; of a choice `contradictory`; of a program `wrong_answer: test 3`, `exception: <type>`, …"""
    isolation: str | None = None
    """What kept a program that was run from the rest of the machine."""


class Verifier(AbstractContextManager["Verifier"], Protocol):
    """Judges completions; leaving its context ends every process it has started."""

    def judge(self, items: Sequence[Answered]) -> list[Judgement]:
        """Return one judgement per item, in order. Raises `TokenSqueezeError` where nothing can be judged at all."""
        ...
