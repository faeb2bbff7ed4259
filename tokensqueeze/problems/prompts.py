"""Put each question under the model's chat template, and see that the context has room left for an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from jinja2 import TemplateError

from tokensqueeze.errors import ModelError, ProblemsError
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.schema import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedProblems:
    problems: list[Problem]
    dropped_too_long: list[str]
    """Ids of the problems whose prompt fills the context."""


def prepare(
    raw: Sequence[RawProblem],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    context_length: int,
    instruction: str,
    too_long: Literal["error", "drop"],
    key: str,
) -> PreparedProblems:
    """Return the problems with their prompts, in order. `context_length` counts prompt and completion, in tokens.

    A prompt that leaves not one token free is too long. Raises `ProblemsError` where there is such a prompt and
    `too_long` is `error`, or where no other is left; `ModelError` where the chat template fails.
    """
    prepared = [_problem(problem, tokenizer=tokenizer, instruction=instruction) for problem in raw]
    fitting = [problem for problem in prepared if len(problem.prompt_token_ids) < context_length]
    dropped = [problem for problem in prepared if len(problem.prompt_token_ids) >= context_length]
    if dropped and (too_long == "error" or not fitting):
        raise ProblemsError(_too_long_text(dropped, context_length, can_drop=bool(fitting), key=key))
    return PreparedProblems(fitting, [problem.problem_id for problem in dropped])


def _problem(raw: RawProblem, *, tokenizer: "PreTrainedTokenizerBase", instruction: str) -> Problem:
    content = f"{raw.question}\n\n{instruction}" if instruction else raw.question
    try:
        messages = [{"role": "user", "content": content}]
        prompt = cast(str, tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except TemplateError as error:
        raise ModelError(
            f"{tokenizer.name_or_path}: the chat template fails on a lone user message ({error}); mend the template"
        ) from error
    # The template has written the special tokens; the tokenizer must not add its own.
    token_ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    return Problem(
        raw.problem_id,
        raw.question,
        raw.gold_answer,
        prompt,
        token_ids,
        answer_kind=raw.answer_kind,
        level=raw.level,
    )


def _too_long_text(dropped: Sequence[Problem], context_length: int, *, can_drop: bool, key: str) -> str:
    first, more = dropped[0], len(dropped) - 1
    others = f" (and {more} more)" if more else ""
    ways_out = "take it out or use a model with a longer context"
    if can_drop:
        ways_out += ', or set problems.too_long = "drop"'
    return (
        f"{key}: problem {first.problem_id!r}{others}: its prompt has {len(first.prompt_token_ids)} tokens and the "
        f"model's context {context_length}, so there is no room for an answer; {ways_out}"
    )
