"""EleutherAI's lm-evaluation-harness with this project's tasks, against this project's own measure, on the same outputs."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokensqueeze.config import VerifierSettings
from tokensqueeze.metrics.evaluation import Cell, measure
from tokensqueeze.problems.benchmarks import benchmark, read_benchmark
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.schema import EvaluationTrace, FinishReason
from tokensqueeze.verifiers.answers import AnswerVerifier
from tokensqueeze.verifiers.verdict import Answered

pytest.importorskip("lm_eval", reason="`make test-lm-eval` runs this in an environment that has lm-evaluation-harness")

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "benchmarks" / "lm_eval"
BUDGET = 1000


@dataclass(frozen=True)
class Stored:
    text: str
    finish_reason: FinishReason


def stored(problem: RawProblem, run: int) -> Stored:
    """What a model is said to have answered: right, wrong, without an answer or cut off, in turns of its own per problem."""
    gold = problem.gold_answer
    kinds = (
        Stored(f"<think>Easily.</think>It is \\boxed{{{gold}}}.", "stop"),
        Stored(f"It is \\boxed{{{gold}}}, no: \\boxed{{-7 - {gold}}}.", "stop"),
        Stored("<think>\\boxed{1}</think>I can't say.", "stop"),
        Stored(f"<think>It will be \\boxed{{{gold}}}, but let me", "length"),
        Stored(f"<think>Easily.</think>It is \\boxed{{{gold} + 0}}.", "stop"),
    )
    return kinds[(run * run + len(problem.question)) % len(kinds)]


def run_harness(name: str, path: Path, problems: list[RawProblem]) -> dict[str, Any]:
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    class Replay(LM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            run = Counter[str]()
            answers = []
            for request in requests:
                prompt = request.args[0]
                [problem] = [each for each in problems if prompt.startswith(each.question)]
                answers.append(stored(problem, run[prompt]).text)
                run[prompt] += 1
            assert set(run.values()) == {benchmark(name).num_samples}
            return answers

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            raise NotImplementedError

    metadata = {name: str(path)}
    done = simple_evaluate(
        model=Replay(),
        tasks=[f"tokensqueeze_{name}"],
        task_manager=TaskManager(include_path=str(TASKS), metadata=metadata),
        metadata=metadata,
        bootstrap_iters=0,
    )
    assert done is not None
    return done["results"][f"tokensqueeze_{name}"]


def run_own(name: str, problems: list[RawProblem]) -> Cell:
    settings = VerifierSettings(answer_forms=list(benchmark(name).answer_forms))
    outputs = [(problem, run, stored(problem, run)) for problem in problems for run in range(benchmark(name).num_samples)]
    with AnswerVerifier(settings, think_end="</think>") as verifier:
        judgements = verifier.judge(
            [Answered(output.text, problem.gold_answer, output.finish_reason) for problem, _, output in outputs]
        )
    traces = [
        EvaluationTrace(
            trace_id=f"{problem.problem_id}/{run}",
            problem_id=problem.problem_id,
            sample_index=run,
            text=output.text,
            token_ids=[],
            num_tokens=len(output.text),
            finish_reason=output.finish_reason,
            verdict=judgement.verdict,
            extracted_answer=judgement.extracted_answer,
            verdict_cause=judgement.cause,
            thinking_tokens=0,
            answer_tokens=len(output.text),
            decoding="sampled",
        )
        for (problem, run, output), judgement in zip(outputs, judgements, strict=True)
    ]
    return measure(traces, BUDGET)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(folder: Path) -> dict[str, Path]:
    """A file of each benchmark's own shape; AIME's problems are made up."""
    aime = [{"id": index, "problem": f"What is {'1 + ' * index}{index}?", "answer": 2 * index} for index in range(1, 8)]
    math = [
        {"problem": "What is half of one?", "answer": "\\frac{1}{2}", "solution": "\\boxed{\\frac{1}{2}}", "level": 1},
        {"problem": "Where does $x^2 = 5$ hold?", "answer": "\\pm\\sqrt{5}", "solution": "\\boxed{\\pm\\sqrt{5}}", "level": 2},
        {"problem": "Which point is at the origin of the plane?", "answer": "(0,0)", "solution": "\\boxed{(0,0)}", "level": 1},
    ]
    return {
        "gsm8k": ROOT / "tests" / "fixtures" / "gsm8k.jsonl",
        "math500": write_rows(folder / "math500.jsonl", math),
        "aime24": write_rows(folder / "aime24.jsonl", aime),
    }


@pytest.mark.parametrize("name", ["gsm8k", "math500", "aime24"])
def test_the_harness_gives_the_same_accuracy_on_the_same_outputs(name: str, tmp_path: Path) -> None:
    path = files(tmp_path)[name]
    problems = read_benchmark(name, str(path), key=name)
    theirs, ours = run_harness(name, path, problems), run_own(name, problems)
    assert 0 < ours.accuracy < 1
    assert ours.truncated > 0
    assert theirs["accuracy,runs"] == ours.accuracy
    assert theirs["unverifiable,runs"] == ours.unverifiable
    assert theirs["sample_len"] == ours.num_problems
