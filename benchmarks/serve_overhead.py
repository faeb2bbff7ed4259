"""What does serving cost against the bare engine: throughput and time to the first token, at several numbers of clients?

The bare engine is the same continuous batch, stepped in a plain loop in this process by clients that ask their next question
when their last answer has ended: no HTTP, no JSON, no text, no Ray. Served, the same requests (same tokens, seeds, slots and
threads) go through `tokensqueeze serve` as streams, their clients in this process.

Throughput is of clients that ask again at once. For the time to the first token each waits a little first, the same on both
sides, so that requests come while a step is under way: asked between two steps, as only a caller in the engine's own loop can,
a bare engine would be spared half a step. Rounds alternate; ratios are medians of each round's own.
"""

import argparse
import asyncio
import heapq
import json
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving_load import Reply, ask, closed_loop, server, session
from tokensqueeze.config import EngineSettings, ProblemSource
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.engines.build import build_engine
from tokensqueeze.engines.checkpoint import load_tokenizer, model_dir
from tokensqueeze.engines.continuous_batch import ContinuousBatch
from tokensqueeze.problems.source import read_problems

SETTINGS = """
models = [{{ path = {path}, name = "served", engine = {{ max_batch_size = {slots}, threads = {threads} }} }}]
access_log = {access_log}
[limits]
max_concurrency = 4096
max_queued = 4096
"""


@dataclass(frozen=True)
class Round:
    tokens_per_second: float
    first_token_seconds: float
    """The median."""
    tokens: int


def bare_round(
    batch: ContinuousBatch, requests: Sequence[GenerationRequest], concurrency: int, pauses: Sequence[float]
) -> Round:
    """`pauses`: seconds from the moment that a client is free until it asks each request."""
    free = [time.perf_counter()] * concurrency
    asked: dict[str, float] = {}
    first: dict[str, float] = {}
    waiting = deque(enumerate(requests))
    coming: list[tuple[float, int]] = []
    tokens = under_way = 0
    began = time.perf_counter()
    while waiting or coming or under_way:
        while waiting and free:
            index, _ = waiting.popleft()
            heapq.heappush(coming, (free.pop() + pauses[index], index))
        if coming and not under_way:
            time.sleep(max(0.0, coming[0][0] - time.perf_counter()))
        while coming and coming[0][0] <= time.perf_counter():
            moment, index = heapq.heappop(coming)
            asked[str(index)] = moment
            batch.add(str(index), requests[index])
            under_way += 1
        growths = batch.step()
        now = time.perf_counter()
        for growth in growths:
            first.setdefault(growth.key, now - asked[growth.key])
            tokens += len(growth.token_ids)
            if growth.finish_reason:
                under_way -= 1
                free.append(now)
    return Round(tokens / (time.perf_counter() - began), statistics.median(first.values()), tokens)


async def served_round(url: str, key: str, jobs: Sequence[dict[str, Any]], concurrency: int, pauses: Sequence[float]) -> Round:
    async def pause_and_ask(job: tuple[float, dict[str, Any]]) -> Reply:
        await asyncio.sleep(job[0])
        return await ask(http, url, job[1])

    async with session(key) as http:
        began = time.perf_counter()
        replies = await closed_loop(list(zip(pauses, jobs, strict=True)), concurrency, pause_and_ask)
        seconds = time.perf_counter() - began
    broken = [reply.error or "incomplete" for reply in replies if not reply.complete]
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(jobs)} answers were not complete: {broken[:3]}")
    tokens = sum(reply.completion_tokens for reply in replies)
    first = [reply.first_token for reply in replies if reply.first_token is not None]
    return Round(tokens / seconds, statistics.median(first), tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--problems", default="demo:test")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests-per-client", type=int, default=6)
    parser.add_argument("--min-requests", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pause-seconds", type=float, default=0.2, help="mean, of clients whose first token is timed")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    folder = model_dir(args.model)
    engine_settings = EngineSettings(max_batch_size=args.slots, threads=args.threads)
    engine = build_engine(folder, engine_settings, "auto")
    batch = ContinuousBatch(engine)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(folder)
    counts = {clients: max(args.min_requests, clients * args.requests_per_client) for clients in args.concurrency}
    source = ProblemSource(path=args.problems, limit=max(counts.values()))
    questions = [problem.question for problem in read_problems(source, key="--problems")]
    jobs, requests = [], []
    for seed in range(max(counts.values())):
        messages = [{"role": "user", "content": questions[seed % len(questions)]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(str(prompt), add_special_tokens=False)["input_ids"]
        requests.append(GenerationRequest(ids, args.max_tokens, 0.7, 1.0, seed))  # type: ignore[arg-type]
        body = {"model": "served", "messages": messages, "max_tokens": args.max_tokens, "temperature": 0.7, "seed": seed}
        jobs.append(body | {"top_p": 1.0, "stream": True, "stream_options": {"include_usage": True}})

    results: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as work:
        settings = Path(work) / "serve.toml"
        access_log = json.dumps(str(Path(work) / "access.log"))
        settings.write_text(
            SETTINGS.format(path=json.dumps(str(folder)), slots=args.slots, threads=args.threads, access_log=access_log)
        )
        with server(["--settings", str(settings)], Path(work) / "server.log") as served:
            for clients, count in counts.items():
                pairs = []
                pausing = random.Random(clients)
                none, pauses = [0.0] * count, [pausing.uniform(0, 2 * args.pause_seconds) for _ in range(count)]
                for round_number in range(args.rounds + 1):
                    halves = []
                    for pause in (none, pauses):
                        bare = bare_round(batch, requests[:count], clients, pause)
                        through = asyncio.run(served_round(served.url, served.key, jobs[:count], clients, pause))
                        if through.tokens != bare.tokens:
                            print(f"note: {through.tokens} tokens served, {bare.tokens} bare: not the same work")
                        halves.append((bare, through))
                    if round_number:  # the first warms up
                        pairs.append(halves)
                        print(
                            f"{clients} clients, round {round_number}: (bare, served) at once and paused: {halves}", flush=True
                        )
                results[clients] = compared(pairs)
    print("clients, bare tokens/s, served tokens/s, ratio; bare TTFT p50 ms, served, ratio, added ms")
    for clients, row in results.items():
        rates = f"{row['bare_tokens_per_second']:8.0f} {row['tokens_per_second']:8.0f} {row['throughput_ratio']:6.3f}"
        first = f"{row['bare_ttft_p50_ms']:8.1f} {row['ttft_p50_ms']:8.1f} {row['ttft_p50_ratio']:6.2f}"
        print(f"{clients:4} {rates}   {first} {row['ttft_p50_added_ms']:8.1f}")
    keys = ("throughput_ratio", "ttft_p50_ratio", "ttft_p50_added_ms")
    by_key = {key: {str(clients): round(row[key], 4) for clients, row in results.items()} for key in keys}
    print(json.dumps({**by_key, "model": args.model, "slots": args.slots, "threads": args.threads, "cpus": os.cpu_count()}))


def compared(rounds: Sequence[list[tuple[Round, Round]]]) -> dict[str, float]:
    rates = [(bare.tokens_per_second, served.tokens_per_second) for (bare, served), _ in rounds]
    firsts = [(bare.first_token_seconds * 1e3, served.first_token_seconds * 1e3) for _, (bare, served) in rounds]
    return {
        "throughput_ratio": statistics.median(served / bare for bare, served in rates),
        "ttft_p50_ratio": statistics.median(served / bare for bare, served in firsts),
        "ttft_p50_added_ms": statistics.median(served - bare for bare, served in firsts),
        "bare_tokens_per_second": statistics.median(bare for bare, _ in rates),
        "tokens_per_second": statistics.median(served for _, served in rates),
        "bare_ttft_p50_ms": statistics.median(bare for bare, _ in firsts),
        "ttft_p50_ms": statistics.median(served for _, served in firsts),
    }


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
