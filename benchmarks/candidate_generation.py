"""How fast are candidates for steps drawn: by our engines, by transformers' own `generate`, by vLLM's own `LLM.generate`?

    python -m benchmarks.candidate_generation [--model DIR [--problems FILE | --texts FILE]] [--traces N] [--candidates K]

Every way draws K candidates behind the same prefixes, those that `ProposeSteps` sends for real traces: sampled by the model
itself on the demo's or a file's problems, or the longest of a JSONL file's texts ("question" and "response") that have
several steps. Repetitions take turns; a rate is of the median one's wall clock, the reading of prompts included.

* our engine: all draws in one call, as `ProposeSteps` makes it
* transformers `generate`: one call per step, with a batch of K; on evenly spread steps, since it is slow
* vLLM `LLM.generate`: all steps in one call, n = K, without seeds, prefix caching on; its cache is emptied between runs
* our vLLM engine: one seeded request per draw

vLLM takes part where it is installed. On a CPU: `make .venv-vllm/.installed`, then with .venv-vllm/bin/python and
VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 in the environment.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from tokensqueeze.config import EngineSettings, KLBound, ProblemSource, Reliable, RewriterSettings, SamplingSettings
from tokensqueeze.engines.base import Engine, Generation, GenerationRequest
from tokensqueeze.engines.checkpoint import context_length, eos_token_ids, load_tokenizer, model_dir
from tokensqueeze.engines.transformers_engine import TransformersEngine
from tokensqueeze.engines.vllm_engine import VLLMEngine
from tokensqueeze.problems.prompts import prepare
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.source import read_problems
from tokensqueeze.schema import Problem, SelectedTrace, Trace
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.propose_steps import ProposeSteps
from tokensqueeze.stages.sample_traces import SampleTraces
from tokensqueeze.traces.anatomy import STEP_DELIMITER

OURS, GENERATE = "our engine", "transformers generate"
VLLM, OUR_VLLM = "vLLM LLM.generate", "our vLLM engine"
SEVERAL_STEPS = 4
THINK_END = "</think>"


@dataclass(frozen=True)
class Step:
    """A step's draws: all behind one prefix, each with a seed of its own."""

    requests: Sequence[GenerationRequest]


@dataclass
class Runs:
    steps: Sequence[Step]
    draw: Callable[[Sequence[Step]], list[int]]
    """Draws all candidates of some steps; returns how many tokens each draw took."""
    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        drawn = self.draw(self.steps)
        self.seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)
        assert len(drawn) == self.draws, f"{len(drawn)} draws where {self.draws} were asked for"
        self.tokens += sum(drawn)

    @property
    def draws(self) -> int:
        return sum(len(step.requests) for step in self.steps)

    @property
    def tokens_per_draw(self) -> float:
        return self.tokens / len(self.seconds) / self.draws

    @property
    def draws_per_second(self) -> float:
        return self.draws / statistics.median(self.seconds)

    @property
    def draws_per_cpu_second(self) -> float:
        return self.draws / statistics.median(self.cpu_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a Hugging Face model directory; default: the demo's")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--problems", default="demo:train", help="problems on which the model samples its traces")
    given.add_argument("--texts", type=Path, help='JSONL rows with "question" and "response", used as traces')
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=32, help="K")
    parser.add_argument(
        "--rewriter", choices=("kl_bound", "reliable"), default="kl_bound", help="decides how long draws may be"
    )
    parser.add_argument("--max-steps", type=int, help="of each trace, evenly spread; default: all")
    parser.add_argument("--generate-steps", type=int, default=8, help="steps for transformers' own generate; 0: leave it out")
    parser.add_argument("--batch", type=int, default=256, help="rows at once, for our engines and for vLLM")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print((__doc__ or "").partition("\n")[0], style="bold")

    folder = model_dir(arguments.model)
    source = ModelSource(folder, EngineSettings(max_batch_size=arguments.batch), "auto", THINK_END)
    if arguments.texts:
        problems, traces = traces_of_texts(source, arguments.texts, arguments.traces)
    else:
        problems, traces = sampled_traces(source, arguments.problems, arguments.traces)
    steps = steps_of(source, problems, traces, rewriter_of(arguments.rewriter, arguments.candidates), arguments.max_steps)
    prefixes = [len(step.requests[0].prompt_token_ids) for step in steps]
    console.print(
        f"{len(traces)} traces, {len(steps)} steps, {arguments.candidates} candidates each; prefixes of {min(prefixes)} to "
        f"{max(prefixes)} tokens, {statistics.mean(prefixes):.0f} on average"
    )

    ways, reasons = ways_of(source, steps, arguments.generate_steps)
    for way in ways.values():
        way.draw(way.steps[:1])
    for _ in range(arguments.repetitions):
        for way in ways.values():
            way.run()

    table = RichTable("drawn by")
    for header in ("candidates", "tokens each", "seconds", "candidates/s", "candidates/CPU s"):
        table.add_column(header, justify="right")
    for name, way in ways.items():
        table.add_row(
            name,
            f"{way.draws:,}",
            f"{way.tokens_per_draw:.1f}",
            f"{statistics.median(way.seconds):.2f}",
            f"{way.draws_per_second:,.1f}",
            f"{way.draws_per_cpu_second:,.1f}",
        )
    console.print(table)
    for name, reason in reasons.items():
        console.print(f"{name}: {reason}")
    result = {
        "ratio_vs_vllm": ratio(ways, OURS, VLLM),
        "ratio_vs_generate": ratio(ways, OURS, GENERATE),
        "vllm_engine_ratio_vs_vllm": ratio(ways, OUR_VLLM, VLLM),
        "left_out": reasons,
        "traces": len(traces),
        "steps": len(steps),
        "candidates_per_step": arguments.candidates,
        "mean_prefix_tokens": round(statistics.mean(prefixes), 1),
        "ways": {
            name: {
                "candidates": way.draws,
                "tokens_per_candidate": round(way.tokens_per_draw, 2),
                "candidates_per_second": round(way.draws_per_second, 2),
                "candidates_per_cpu_second": round(way.draws_per_cpu_second, 2),
                "seconds": [round(seconds, 3) for seconds in way.seconds],
            }
            for name, way in ways.items()
        },
    }
    print(json.dumps(result))


def ratio(ways: dict[str, Runs], ours: str, theirs: str) -> float | None:
    if ours not in ways or theirs not in ways:
        return None
    return round(ways[ours].draws_per_second / ways[theirs].draws_per_second, 3)


def rewriter_of(name: str, candidates: int) -> KLBound | Reliable:
    return KLBound(num_candidates=candidates) if name == "kl_bound" else Reliable(num_candidates=candidates)


def sampled_traces(source: ModelSource, problems: str, count: int) -> tuple[list[Problem], list[SelectedTrace]]:
    """Return problems, and one trace that the model samples for each."""
    raw = read_problems(ProblemSource(path=problems, limit=count), key="--problems")
    prepared = prepared_problems(source, raw)
    sampling = SamplingSettings(num_samples=1, temperature=0.7, max_tokens=1024)
    sampled = SampleTraces(source, sampling)({"problems": prepared}).rows
    return prepared, [selected(trace) for trace in sampled]


def traces_of_texts(source: ModelSource, path: Path, count: int) -> tuple[list[Problem], list[SelectedTrace]]:
    """Return the file's longest texts that have several steps, each as a trace of a problem of its own."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row["response"].count(STEP_DELIMITER) >= SEVERAL_STEPS]
    if not rows:
        raise SystemExit(f"{path}: no response in it has {SEVERAL_STEPS} blank lines, and steps end with one")
    rows = sorted(rows, key=lambda row: len(row["response"]), reverse=True)[:count]
    raw = [RawProblem(problem_id=str(i), question=row["question"], gold_answer="") for i, row in enumerate(rows)]
    room = context_length(source.folder)
    problems = prepared_problems(source, raw)
    traces = []
    for problem, row in zip(problems, rows, strict=True):
        token_ids = source.tokens.encode(row["response"])[: room - len(problem.prompt_token_ids) - 1]
        traces.append(selected(source.trace(problem.problem_id, 0, token_ids, "stop")))
    return problems, traces


def prepared_problems(source: ModelSource, raw: Sequence[RawProblem]) -> list[Problem]:
    room = context_length(source.folder)
    tokenizer = load_tokenizer(source.folder)
    return prepare(raw, tokenizer=tokenizer, context_length=room, instruction="", too_long="error", key="problems").problems


def selected(trace: Trace) -> SelectedTrace:
    """Return the trace as one that was verified and selected; which verdict it has is of no weight to its steps."""
    return SelectedTrace(
        **vars(trace),
        verdict="correct",
        extracted_answer=None,
        verdict_cause=None,
        thinking_tokens=trace.num_tokens,
        answer_tokens=0,
        rank=0,
        num_correct=1,
        num_sampled=1,
    )


def steps_of(
    source: ModelSource,
    problems: Sequence[Problem],
    traces: Sequence[SelectedTrace],
    rewriter: RewriterSettings,
    max_steps: int | None,
) -> list[Step]:
    """Return what `ProposeSteps` asks its engine for, step by step."""
    steps = []
    for trace in traces:
        recorder = RecordingSource(source.folder, source.engine_settings, source.dtype, source.think_end)
        ProposeSteps(recorder, rewriter)({"problems": list(problems), "selected_traces": [trace]})
        own = [Step(list(draws)) for _, draws in groupby(recorder.asked.requests, key=lambda asked: asked.prompt_token_ids)]
        steps += evenly_spread(own, max_steps or len(own))
    if not steps:
        raise SystemExit("the traces have no step of more than one token; take more of them, or others")
    return steps


def evenly_spread(steps: Sequence[Step], count: int) -> list[Step]:
    """Return `count` of the steps, or all if there are fewer, at even distances."""
    count = min(count, len(steps))
    return [steps[(2 * index + 1) * len(steps) // (2 * count)] for index in range(count)]


@dataclass
class Recorder:
    """An engine that keeps what it is asked for and draws nothing."""

    requests: list[GenerationRequest] = field(default_factory=list)
    deterministic: bool = True

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.requests += requests
        return [Generation([], "length") for _ in requests]


@dataclass(frozen=True)
class RecordingSource(ModelSource):
    asked: Recorder = field(default_factory=Recorder)

    def engine(self) -> Engine:
        return self.asked


def ways_of(source: ModelSource, steps: Sequence[Step], generate_steps: int) -> tuple[dict[str, Runs], dict[str, str]]:
    """Return every way that can be run here, and why the others can't."""
    engine = source.engine()
    assert isinstance(engine, TransformersEngine)
    ways = {OURS: Runs(steps, lambda some: drawn_by(engine, some))}
    reasons: dict[str, str] = {}
    if generate_steps:
        generating = TransformersGenerate(source)
        ways[GENERATE] = Runs(evenly_spread(steps, generate_steps), generating.draw)
    else:
        reasons[GENERATE] = "left out by --generate-steps 0"
    if importlib.util.find_spec("vllm"):
        # On a GPU, two of them share the memory.
        settings = source.engine_settings.model_copy(update={"kind": "vllm", "gpu_memory_utilization": 0.4})
        for_vllm = replace(source, engine_settings=settings)
        # Ours comes first: it sets what vLLM reads from the environment.
        ways[OUR_VLLM] = Runs(steps, OurVLLMEngine(for_vllm).draw)
        ways[VLLM] = Runs(steps, VLLMGenerate(for_vllm).draw)
    else:
        reasons[VLLM] = "vLLM is not installed here"
    return ways, reasons


def drawn_by(engine: Engine, steps: Sequence[Step]) -> list[int]:
    generations = engine.generate([request for step in steps for request in step.requests])
    return [len(generation.token_ids) for generation in generations]


class TransformersGenerate:
    """One call of the model's own `generate` per step: the prefix repeated K times, one batch."""

    def __init__(self, source: ModelSource):
        self._model: Any = source.scoring_model()
        self._tokenizer = load_tokenizer(source.folder)
        self._end_ids = sorted(eos_token_ids(source.folder))
        # Not a token that ends a draw: that one belongs to the draw, and padding does not.
        self._padding = next(token for token in range(len(self._end_ids) + 1) if token not in self._end_ids)

    @torch.inference_mode()
    def draw(self, steps: Sequence[Step]) -> list[int]:
        lengths: list[int] = []
        for step in steps:
            asked = step.requests[0]
            prompt = torch.tensor([asked.prompt_token_ids], device=self._model.device)
            output = self._model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=asked.temperature,
                top_p=asked.top_p,
                top_k=0,
                num_return_sequences=len(step.requests),
                max_new_tokens=asked.max_tokens,
                stop_strings=list(asked.stop_texts),
                tokenizer=self._tokenizer,
                eos_token_id=self._end_ids,
                pad_token_id=self._padding,
            )
            drawn = (output[:, prompt.shape[1] :] != self._padding).cpu()
            lengths += (drawn * torch.arange(1, drawn.shape[1] + 1)).amax(-1).tolist()
        return lengths


class VLLMGenerate:
    """vLLM's own `LLM.generate`, as vLLM sets itself up; what our engine sets for all its work is set here too."""

    def __init__(self, source: ModelSource):
        import vllm  # pyright: ignore[reportMissingImports]

        on_cpu = vllm.platforms.current_platform.is_cpu()
        self._llm = vllm.LLM(
            model=str(source.folder),
            dtype="float32" if on_cpu else source.dtype,
            max_model_len=context_length(source.folder),
            max_num_seqs=source.engine_settings.max_batch_size,
            gpu_memory_utilization=source.engine_settings.gpu_memory_utilization,
            enable_prefix_caching=True,
            enforce_eager=on_cpu,
        )
        self._sampling_params = vllm.SamplingParams
        self._end_ids = sorted(eos_token_ids(source.folder))

    def draw(self, steps: Sequence[Step]) -> list[int]:
        self._llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": list(step.requests[0].prompt_token_ids)} for step in steps]
        params = [
            self._sampling_params(
                n=len(step.requests),
                max_tokens=step.requests[0].max_tokens,
                temperature=step.requests[0].temperature,
                top_p=step.requests[0].top_p,
                stop=list(step.requests[0].stop_texts),
                stop_token_ids=self._end_ids,
                include_stop_str_in_output=True,
                skip_special_tokens=False,
            )
            for step in steps
        ]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [len(completion.token_ids) for output in outputs for completion in output.outputs]


class OurVLLMEngine:
    """Our vLLM engine, its prefix cache emptied before each run."""

    def __init__(self, source: ModelSource):
        engine = source.engine()
        assert isinstance(engine, VLLMEngine)
        self._engine = engine

    def draw(self, steps: Sequence[Step]) -> list[int]:
        self._engine._llm.reset_prefix_cache()
        return drawn_by(self._engine, steps)


if __name__ == "__main__":
    main()
