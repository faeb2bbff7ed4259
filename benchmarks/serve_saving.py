"""What does squeezing save in production: requests per second and latency, base against squeezed, on the same questions?

Both models stand behind one `tokensqueeze serve`, each with an engine of its own. They are asked in turn, a round each, with
the same questions, seeds and number of clients; the first round of each warms up and isn't counted.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_load import Reply, ask, closed_loop, server, session
from tokensqueeze.config import ProblemSource
from tokensqueeze.problems.source import read_problems
from tokensqueeze.serving.settings import default_name


def chat(model: str, question: str, seed: int, temperature: float) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": model, "messages": messages, "temperature": temperature, "seed": seed, **usage}


def figures(replies: list[Reply], seconds: float) -> dict[str, float]:
    times = [reply.seconds for reply in replies]
    return {
        "requests_per_second": len(replies) / seconds,
        "p50_seconds": statistics.median(times),
        "p95_seconds": float(np.quantile(times, 0.95)),
        "tokens": statistics.mean(reply.completion_tokens for reply in replies),
    }


async def measure(url: str, key: str, models: list[str], questions: list[str], args: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
    loop = asyncio.get_running_loop()
    async with session(key) as http:
        for round_number in range(args.rounds + 1):
            for model in models if round_number % 2 else models[::-1]:
                jobs = [chat(model, question, seed, args.temperature) for seed, question in enumerate(questions)]
                began = loop.time()
                replies = await closed_loop(jobs, args.concurrency, lambda job: ask(http, url, job))
                seconds = loop.time() - began
                failed = [reply.error for reply in replies if not reply.complete]
                if failed:
                    raise RuntimeError(f"{model}: {len(failed)} of {len(replies)} answers were not complete: {failed[:3]}")
                if round_number:
                    rounds[model].append(figures(replies, seconds))
                    print(f"round {round_number} {model}: {figures(replies, seconds)}", flush=True)
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in rounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("squeezed", help="a squeezed model's directory, such as runs/demo/model")
    parser.add_argument("--base", default="demo")
    parser.add_argument("--problems", default="demo:test")
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="of each model")
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    source = ProblemSource(path=args.problems, limit=args.limit)
    questions = [problem.question for problem in read_problems(source, key="--problems")]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "access.log"
        arguments = [args.squeezed, "--base", args.base, "--name", "squeezed", "--access-log", str(log)]
        with server(arguments, Path(folder) / "server.log") as served:
            base, squeezed = default_name(args.base), "squeezed"
            found = asyncio.run(measure(served.url, served.key, [base, squeezed], questions, args))
    ratios = {
        "throughput_ratio": found[squeezed]["requests_per_second"] / found[base]["requests_per_second"],
        "p50_ratio": found[squeezed]["p50_seconds"] / found[base]["p50_seconds"],
        "p95_ratio": found[squeezed]["p95_seconds"] / found[base]["p95_seconds"],
        "tokens_ratio": found[squeezed]["tokens"] / found[base]["tokens"],
    }
    for model, row in found.items():
        print(
            f"{model:10} {row['requests_per_second']:8.2f} requests/s   p50 {row['p50_seconds']:.3f} s   "
            f"p95 {row['p95_seconds']:.3f} s   {row['tokens']:.1f} tokens"
        )
    print(json.dumps({"concurrency": args.concurrency, "base": found[base], "squeezed": found[squeezed], **ratios}))


if __name__ == "__main__":
    main()
