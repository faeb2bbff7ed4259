"""What a verifier is asked, and what it answers."""

from dataclasses import dataclass

from tokensqueeze.schema import FinishReason, Verdict


@dataclass(frozen=True)
class Answered:
    """One completion and the answer it should have come to."""

    text: str
    gold_answer: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    extracted_answer: str | None
    cause: str | None
    """Why the verdict is not a plain one: `truncated`, `no_boxed`, `timeout`, `crash`, `error: <type>`."""
