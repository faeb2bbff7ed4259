"""Benchmarks by name: how each is read, what is put behind its questions, and how it is decoded and how often by default.

MATH-500, AIME and LiveCodeBench as in TokenSqueeze's paper (arXiv 2511.13223, section 4.1.2 and A.3); `source` says where the
others' defaults are from.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from tokensqueeze.config import AnswerForm, ProblemFormat, ProblemSource
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems import hub
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.source import read_problems
from tokensqueeze.schema import AnswerKind

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
BOXED_LETTER = "Please reason step by step, and put the letter of your answer within \\boxed{}."
FENCED = "Enclose your code within one block that begins with ```python and ends with ```."

_PAPER = "TokenSqueeze, arXiv 2511.13223, section 4.1.2 and A.3"
_R1 = "DeepSeek-R1, arXiv 2501.12948, section 3: T 0.6, top_p 0.95, 32,768 tokens"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    name: str
    title: str
    format: ProblemFormat
    dataset: str
    """Its problems on the Hugging Face hub, as `ProblemSource.path` has it."""
    num_problems: int | None
    """How many the whole benchmark has; none where that depends on the release."""
    answer_kind: AnswerKind = "math"
    instruction: str = BOXED
    """Text put behind every question, after a blank line."""
    answer_forms: Sequence[AnswerForm] = ("boxed",)
    """Where the answer is looked for; code has a rule of its own."""
    temperature: float = 0.6
    top_p: float = 0.95
    num_samples: int = 16
    """Runs: sampled traces per problem."""
    max_tokens: int = 32768
    token_budget: int = 32768
    first_date: date | None = None
    """Problems of contests before this day are left out."""
    last_date: date | None = None
    task_ids: range | None = None
    """Ids of the test split, where the benchmark's file holds the others too."""
    source: str
    """Where the decoding defaults are from."""


_ALL = (
    Benchmark(
        name="gsm8k",
        title="GSM8K",
        format="gsm8k",
        dataset="hf:openai/gsm8k:main/test",
        num_problems=1319,
        answer_forms=("boxed", "hash", "last_number"),
        num_samples=4,
        source=f"{_R1}; 4 runs, because 1,319 problems need fewer",
    ),
    Benchmark(
        name="math",
        title="MATH",
        format="math",
        dataset="hf:DigitalLearningGmbH/MATH-lighteval/test",
        num_problems=5000,
        num_samples=4,
        source=f"{_R1}; 4 runs, because 5,000 problems need fewer",
    ),
    Benchmark(
        name="math500",
        title="MATH-500",
        format="math",
        dataset="hf:HuggingFaceH4/MATH-500/test",
        num_problems=500,
        source=_PAPER,
    ),
    Benchmark(
        name="aime24",
        title="AIME 2024",
        format="aime",
        dataset="hf:HuggingFaceH4/aime_2024/train",
        num_problems=30,
        source=_PAPER,
    ),
    Benchmark(
        name="aime25",
        title="AIME 2025",
        format="aime",
        dataset="hf:math-ai/aime25/test",
        num_problems=30,
        source=_PAPER,
    ),
    Benchmark(
        name="amc23",
        title="AMC 2023",
        format="math",
        dataset="hf:math-ai/amc23/test",
        num_problems=40,
        source=f"{_PAPER}, as for AIME: the paper leaves AMC out",
    ),
    Benchmark(
        name="humaneval",
        title="HumanEval",
        format="humaneval",
        dataset="hf:openai/openai_humaneval/test",
        num_problems=164,
        answer_kind="code",
        instruction=FENCED,
        temperature=0.2,
        source="Chen et al. 2021, arXiv 2107.03374: T 0.2 and top_p 0.95 for pass@1; 16 runs as LiveCodeBench",
    ),
    Benchmark(
        name="mbpp",
        title="MBPP",
        format="mbpp",
        dataset="hf:google-research-datasets/mbpp:full/test",
        num_problems=500,
        answer_kind="code",
        instruction=FENCED,
        temperature=0.2,
        num_samples=4,
        task_ids=range(11, 511),
        source="as HumanEval; 4 runs, because 500 problems need fewer; task ids 11 to 510 are the test split (its README)",
    ),
    Benchmark(
        name="livecodebench",
        title="LiveCodeBench",
        format="livecodebench",
        dataset="hf:livecodebench/code_generation_lite/test",
        num_problems=None,
        answer_kind="code",
        instruction=FENCED,
        temperature=0.2,
        first_date=date(2024, 8, 1),
        last_date=date(2025, 1, 31),
        source=f"{_PAPER}: T 0.2, contests from 2024-08-01 to 2025-01-31",
    ),
    Benchmark(
        name="mmlu_pro",
        title="MMLU-Pro",
        format="mmlu_pro",
        dataset="hf:TIGER-Lab/MMLU-Pro/test",
        num_problems=12032,
        answer_kind="choice",
        instruction=BOXED_LETTER,
        answer_forms=("boxed", "answer_tag", "choice_phrase"),
        num_samples=1,
        source=f"{_R1}; 1 run, because 12,032 problems need no more",
    ),
    Benchmark(
        name="gpqa",
        title="GPQA Diamond",
        format="gpqa",
        dataset="hf:Idavidrein/gpqa:gpqa_diamond/train",
        num_problems=198,
        answer_kind="choice",
        instruction=BOXED_LETTER,
        answer_forms=("boxed", "answer_tag", "choice_phrase"),
        source=f"{_R1}; 16 runs as the paper's benchmarks",
    ),
)

BENCHMARKS: Mapping[str, Benchmark] = {known.name: known for known in _ALL}


def benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name. Raises `ProblemsError` with the names there are."""
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name.lower().replace("-", ""), BENCHMARKS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ProblemsError(f"no benchmark is called {name!r}; {hint}There are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read_benchmark(
    name: str, path: str, *, limit: int | None = None, allow_download: bool = False, key: str
) -> list[RawProblem]:
    """Return a benchmark's problems, the first `limit` of them, from its own file or Hugging Face data set.

    `hf` alone, or the data set's id alone, stands for the benchmark's own split of it. Raises `ProblemsError` where name, file
    or row is wrong, or the file holds more problems than the benchmark has.
    """
    known = benchmark(name)
    source = ProblemSource(
        path=known.dataset if hub.is_repository_of(path, known.dataset) else path,
        format=known.format,
        limit=limit,
        allow_download=allow_download,
        first_date=known.first_date,
        last_date=known.last_date,
    )
    problems = read_problems(source, key=key, benchmark=name, task_ids=known.task_ids)
    if known.num_problems and len(problems) > known.num_problems:
        raise ProblemsError(
            f"{key}: {path}: {len(problems)} problems, but {known.title} has {known.num_problems}; name its test split, not "
            "that of training"
        )
    return problems
