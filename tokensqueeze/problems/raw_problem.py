"""A problem as its file has it, before any model's chat template."""

from dataclasses import dataclass

from tokensqueeze.schema import AnswerKind


@dataclass(frozen=True)
class RawProblem:
    problem_id: str
    question: str
    gold_answer: str
    answer_kind: AnswerKind = "math"
    level: str | None = None
