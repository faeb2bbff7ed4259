"""Prompts under the demo model's own tokenizer and chat template."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.errors import ModelError, ProblemsError
from tokensqueeze.problems.prompts import PreparedProblems, prepare
from tokensqueeze.problems.source import RawProblem

SHORT = RawProblem("short", "Tom has 5 apples. Tom buys 3 apples. How many apples?", "8")
LONG = RawProblem("long", "Tom has 5 apples. " + 40 * "Tom buys 3 apples. " + "How many apples?", "125")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_model_dir())


def prepared(tokenizer: PreTrainedTokenizerBase, *raw: RawProblem, **changed: object) -> PreparedProblems:
    settings = {"context_length": 10_000, "instruction": "", "too_long": "error", "key": "problems.test"}
    return prepare(raw, tokenizer=tokenizer, **{**settings, **changed})  # type: ignore[arg-type]


def num_tokens(tokenizer: PreTrainedTokenizerBase, raw: RawProblem) -> int:
    return len(prepared(tokenizer, raw).problems[0].prompt_token_ids)


def test_the_prompt_is_the_chat_templates_and_its_ids_are_the_prompts(tokenizer: PreTrainedTokenizerBase):
    (problem,) = prepared(tokenizer, SHORT).problems
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": SHORT.question}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert problem.prompt_token_ids == ids
    assert tokenizer.decode(problem.prompt_token_ids) == problem.prompt
    assert SHORT.question in problem.prompt
    assert (problem.problem_id, problem.question, problem.gold_answer) == ("short", SHORT.question, "8")


def test_the_instruction_follows_the_question_after_a_blank_line(tokenizer: PreTrainedTokenizerBase):
    (problem,) = prepared(tokenizer, SHORT, instruction="Think in steps.").problems
    assert f"{SHORT.question}\n\nThink in steps." in problem.prompt
    assert problem.question == SHORT.question


def test_one_free_token_is_enough(tokenizer: PreTrainedTokenizerBase):
    length = num_tokens(tokenizer, SHORT)
    assert prepared(tokenizer, SHORT, context_length=length + 1).dropped_too_long == []
    with pytest.raises(ProblemsError):
        prepared(tokenizer, SHORT, context_length=length)


def test_names_the_problem_that_is_too_long_and_the_ways_out(tokenizer: PreTrainedTokenizerBase):
    length = num_tokens(tokenizer, LONG)
    with pytest.raises(ProblemsError) as caught:
        prepared(tokenizer, SHORT, LONG, LONG, context_length=length)
    assert str(caught.value) == (
        f"problems.test: problem 'long' (and 1 more): its prompt has {length} tokens and the model's context {length}, "
        "so there is no room for an answer; take it out or use a model with a longer context, or set "
        'problems.too_long = "drop"'
    )


def test_drops_what_is_too_long_where_that_is_asked_for(tokenizer: PreTrainedTokenizerBase):
    limit = num_tokens(tokenizer, LONG)
    result = prepared(tokenizer, LONG, SHORT, context_length=limit, too_long="drop")
    assert [problem.problem_id for problem in result.problems] == ["short"]
    assert result.dropped_too_long == ["long"]


def test_does_not_drop_everything_in_silence(tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(ProblemsError, match=r"problem 'short'.*longer context$"):
        prepared(tokenizer, SHORT, context_length=3, too_long="drop")


def test_says_that_the_chat_template_fails():
    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir())
    tokenizer.chat_template = "{{ raise_exception('needs a system message') }}"
    with pytest.raises(ModelError, match=r"fails on a lone user message \(needs a system message\)"):
        prepared(tokenizer, SHORT)
