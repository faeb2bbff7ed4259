"""The tables of a run, one row type each: problems → traces → … → scored_pairs, and the evaluation's traces.

A row is a frozen dataclass; its Arrow schema follows from its annotations. `*_token_ids` are ids of the model's own
tokenizer; `num_*` and `*_tokens` count such tokens; `*_logps` are sums over a completion in nats.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

Row = TypeVar("Row")
Verdict = Literal["correct", "incorrect", "no_answer", "unverifiable"]
FinishReason = Literal["stop", "length"]
Decoding = Literal["greedy", "sampled"]
AnswerKind = Literal["math", "choice", "code"]
"""How a problem's answer is judged: as mathematics, as one of several options, or by running tests on it."""


@dataclass(frozen=True)
class Problem:
    problem_id: str
    question: str
    gold_answer: str
    """As the verifier of its kind reads it: LaTeX or plain text; an option's letter, or JSON with the options' texts too; JSON
    with the tests of a program."""
    prompt: str
    """The question under the model's chat template."""
    prompt_token_ids: list[int]
    answer_kind: AnswerKind = field(default="math", kw_only=True)
    level: str | None = field(default=None, kw_only=True)
    """The data set's own difficulty, such as MATH's 1 to 5."""


@dataclass(frozen=True)
class ImportedTrace:
    """A response that was made elsewhere, as its file has it."""

    problem_id: str
    sample_index: int
    text: str
    finish_reason: FinishReason | None
    """None where the file says nothing."""


@dataclass(frozen=True)
class Trace:
    """One sampled response; `text` and `token_ids` are the completion, end-of-sequence token included in the ids alone."""

    trace_id: str
    problem_id: str
    sample_index: int
    text: str
    token_ids: list[int]
    num_tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True)
class VerifiedTrace(Trace):
    verdict: Verdict
    extracted_answer: str | None
    verdict_cause: str | None
    """Why the verdict is not a plain one: `truncated`, `timeout`, `crash`, …"""
    thinking_tokens: int
    """Tokens up to and including the end of the thinking block."""
    answer_tokens: int
    isolation: str | None = field(default=None, kw_only=True)
    """What kept the trace's program from the rest of the machine while its tests ran; None where nothing was run."""


@dataclass(frozen=True)
class SelectedTrace(VerifiedTrace):
    rank: int
    """0 for the shortest correct trace of its problem."""
    num_correct: int
    num_sampled: int

    @property
    def pass_rate(self) -> float:
        return self.num_correct / self.num_sampled


@dataclass(frozen=True)
class Candidate:
    """A distinct rewriting of one step, and how many of the K draws gave it."""

    text: str
    token_ids: list[int]
    draws: int
    first_draw: int


@dataclass(frozen=True)
class StepCandidates:
    """One step of a selected trace: where it stands in the completion, and what the model would have written instead."""

    trace_id: str
    problem_id: str
    step_index: int
    num_steps: int
    token_start: int
    token_end: int
    step_text: str
    candidates: list[Candidate]
    tokens_generated: int


@dataclass(frozen=True)
class StepDecision:
    """What a rewriter did to one step; `kl` is that of the kept text against the original, 0 where the original stays."""

    step_index: int
    original_text: str
    kept_text: str
    original_tokens: int
    kept_tokens: int
    kl: float
    reliability: float | None
    num_candidates: int
    num_scored: int
    rejected_text: str | None = None
    """The candidate that came nearest among those turned down."""
    rejected_tokens: int | None = None
    rejected_kl: float | None = None
    """Its KL, or what was known of it when it went over the bound."""
    rejected_reliability: float | None = None
    """How reliable its form is, where that is why it was turned down."""
    rest_kl: float | None = None
    """That of the kept candidate over the whole rest of the trace, where that was asked for."""
    rest_passes: bool | None = None

    @property
    def rewritten(self) -> bool:
        return self.kept_text != self.original_text


@dataclass(frozen=True)
class RefinedTrace:
    trace_id: str
    problem_id: str
    text: str
    token_ids: list[int]
    num_tokens: int
    original_text: str
    original_num_tokens: int
    decisions: list[StepDecision]


@dataclass(frozen=True)
class PreferencePair:
    """TRL's column names. `rejected` is missing where the objective needs none (plain SFT)."""

    pair_id: str
    problem_id: str
    prompt: str
    chosen: str
    rejected: str | None
    prompt_token_ids: list[int]
    chosen_token_ids: list[int]
    rejected_token_ids: list[int] | None
    chosen_num_tokens: int
    rejected_num_tokens: int | None
    chosen_trace_id: str
    rejected_trace_id: str | None


@dataclass(frozen=True)
class ScoredPair(PreferencePair):
    ref_chosen_logps: float
    ref_rejected_logps: float | None


@dataclass(frozen=True)
class EvaluationTrace(VerifiedTrace):
    decoding: Decoding


@dataclass(frozen=True)
class ForcedTrace(EvaluationTrace):
    """An evaluation trace under a thinking budget: thinking is closed at the budget, and the answer asked for."""

    thinking_budget: int
    """In tokens, before the text that closes the thinking."""
    was_forced: bool
    """False where thinking ended by itself within the budget: then the trace is the evaluation's own."""


@cache
def arrow_schema(row_type: type) -> pa.Schema:
    """Return the Arrow schema of a row type."""
    return pa.schema(_arrow_fields(row_type))


def to_row(row_type: type[Row], value: dict[str, Any]) -> Row:
    """Rebuild a row from the plain dict that pyarrow gives."""
    nested = _nested_lists(row_type)
    return row_type(**{k: [to_row(nested[k], v) for v in value[k]] if k in nested else value[k] for k in value})


def _arrow_fields(row_type: type) -> list[pa.Field]:
    hints = get_type_hints(row_type)
    return [
        pa.field(field.name, _arrow_type(hints[field.name]), nullable=NoneType in get_args(hints[field.name]))
        for field in fields(row_type)
    ]


def _arrow_type(hint: Any) -> pa.DataType:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (inner,) = [argument for argument in arguments if argument is not NoneType]
        return _arrow_type(inner)
    if origin is Literal:
        return pa.string()
    if origin is list:
        # Token ids are the bulk of every table: 32 bits hold any vocabulary.
        return pa.list_(pa.int32() if arguments[0] is int else _arrow_type(arguments[0]))
    if is_dataclass(hint):
        return pa.struct(_arrow_fields(hint))  # type: ignore[arg-type]
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[hint]


@cache
def _nested_lists(row_type: type) -> dict[str, type]:
    hints = get_type_hints(row_type)
    return {
        field.name: get_args(hints[field.name])[0]
        for field in fields(row_type)  # type: ignore[arg-type]
        if get_origin(hints[field.name]) is list and is_dataclass(get_args(hints[field.name])[0])
    }
