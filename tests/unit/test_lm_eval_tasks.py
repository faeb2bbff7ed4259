"""The tasks for lm-evaluation-harness, as far as they can be looked at without it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.lm_eval import answers
from tokensqueeze.problems.benchmarks import benchmark

TASKS = Path(__file__).parents[2] / "benchmarks" / "lm_eval"
NAMES = ("gsm8k", "math500", "aime24")


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: str(node.value))


def task(name: str) -> dict[str, Any]:
    return yaml.load((TASKS / f"tokensqueeze_{name}.yaml").read_text(), Loader)


def document(**changed: Any) -> dict[str, Any]:
    common = {"gold_answer": "72", "answer_kind": "math", "benchmark": "math500", "think_end": "</think>", "opened": False}
    return common | changed


@pytest.mark.parametrize("name", NAMES)
def test_a_task_decodes_as_the_benchmark_does(name: str) -> None:
    known, own = benchmark(name), task(name)
    assert own["task"] == f"tokensqueeze_{name}"
    assert own["repeats"] == own["filter_list"][0]["filter"][0]["k"] == known.num_samples
    generation = own["generation_kwargs"]
    assert (generation["temperature"], generation["top_p"], generation["max_gen_toks"]) == (
        known.temperature,
        known.top_p,
        known.max_tokens,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_task_names_functions_that_are_there(name: str) -> None:
    for function in (task(name)["custom_dataset"], task(name)["process_results"]):
        module, _, attribute = function.rpartition(".")
        assert module == "answers" and callable(getattr(answers, attribute))


def test_the_shares_of_a_problem_are_over_all_its_runs() -> None:
    runs = ["\\boxed{72}", "so \\boxed{72.0}", "\\boxed{73}", "no idea"]
    assert answers.process_results(document(), [runs]) == {"accuracy": 0.5, "no_answer": 0.25, "unverifiable": 0.0}


def test_a_single_run_comes_without_a_list() -> None:
    assert answers.process_results(document(), ["\\boxed{72}"])["accuracy"] == 1.0


def test_thinking_that_is_never_closed_was_cut_off() -> None:
    assert answers.finish_reason("<think>\\boxed{72}", document()) == "length"
    assert answers.finish_reason("<think>\\boxed{72}</think> So.", document()) == "stop"
    assert answers.finish_reason("\\boxed{72}", document()) == "stop"
    assert answers.finish_reason("\\boxed{72}", document(opened=True)) == "length"
    assert answers.process_results(document(), ["<think>\\boxed{72}"])["accuracy"] == 0.0
