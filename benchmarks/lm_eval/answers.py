"""What the task files beside this need of tokensqueeze: its problems, its prompts and its verdicts, in lm-evaluation-harness.

    lm_eval --model … --include_path benchmarks/lm_eval --tasks tokensqueeze_gsm8k \
        --metadata '{"gsm8k": "gsm8k_test.jsonl"}' --apply_chat_template

`--metadata` names each benchmark's file, as `tokensqueeze evaluate --benchmark` does, or an `hf:` data set in the local cache.
The harness does not say why a response ended. One that never closes its thinking is taken as cut off, as it is where a file of
traces says `length`; for a model whose chat template opens the thinking, say so with `"opened": true`.
"""

import atexit
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tokensqueeze.config import VerifierSettings
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.benchmarks import benchmark, read_benchmark
from tokensqueeze.schema import FinishReason
from tokensqueeze.verifiers.answers import AnswerVerifier
from tokensqueeze.verifiers.verdict import Answered

if TYPE_CHECKING:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

THINK_END = "</think>"

# The harness does not say when it is done: the verifier's processes end with the interpreter.
_open = ExitStack()
atexit.register(_open.close)


def gsm8k(**metadata: Any) -> dict[str, "Dataset"]:
    return _documents("gsm8k", metadata)


def math500(**metadata: Any) -> dict[str, "Dataset"]:
    return _documents("math500", metadata)


def aime24(**metadata: Any) -> dict[str, "Dataset"]:
    return _documents("aime24", metadata)


def _documents(name: str, metadata: Mapping[str, Any]) -> dict[str, "Dataset"]:
    """Return a benchmark's problems as the harness wants them: the one split `test`."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    if name not in metadata:
        raise ProblemsError(f'tokensqueeze_{name}: no file to read; name it with --metadata \'{{"{name}": "PATH"}}\'')
    instruction = benchmark(name).instruction
    documents = [
        {
            "problem_id": problem.problem_id,
            "prompt": f"{problem.question}\n\n{instruction}" if instruction else problem.question,
            "gold_answer": problem.gold_answer,
            "answer_kind": problem.answer_kind,
            "benchmark": name,
            "think_end": metadata.get("think_end", THINK_END),
            "opened": bool(metadata.get("opened", False)),
        }
        for problem in read_benchmark(name, metadata[name], key=f"tokensqueeze_{name}")
    ]
    return {"test": Dataset.from_list(documents)}


def process_results(document: Mapping[str, Any], results: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Return the shares of a problem's responses that are correct, have no answer, and could not be judged."""
    [first] = results
    texts = [first] if isinstance(first, str) else list(first)
    judgements = _verifier(document["benchmark"], document["think_end"]).judge(
        [Answered(text, document["gold_answer"], finish_reason(text, document), document["answer_kind"]) for text in texts]
    )
    verdicts = [judgement.verdict for judgement in judgements]
    return {
        "accuracy": fmean(verdict == "correct" for verdict in verdicts),
        "no_answer": fmean(verdict == "no_answer" for verdict in verdicts),
        "unverifiable": fmean(verdict == "unverifiable" for verdict in verdicts),
    }


def finish_reason(text: str, document: Mapping[str, Any]) -> FinishReason:
    """Return `length` for a response that opens its thinking, or had it opened by the prompt, and never closes it."""
    think_end: str = document["think_end"]
    opens = document["opened"] or text.lstrip().startswith(think_end.replace("</", "<", 1))
    return "length" if opens and think_end not in text else "stop"


@cache
def _verifier(name: str, think_end: str) -> AnswerVerifier:
    settings = VerifierSettings(answer_forms=list(benchmark(name).answer_forms))
    return _open.enter_context(AnswerVerifier(settings, think_end=think_end))
