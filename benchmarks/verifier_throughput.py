"""How many verdicts a second does the math verifier give, against Math-Verify called plainly; and does it leak?

`--seconds` times two mixes: ordinary answers (answers of MATH and GSM8K beside rewritten and wrong ones), and those of
them alone that need Math-Verify. In every round the digits 1 to 9 are exchanged at random, the same way in gold answer and
answer, so that few were judged before. The peer is `verify(parse(gold), parse(answer))` in this process, with its own
time-out (`signal.alarm`), on the same items. `--soak N` gives N verdicts, hangs, crashes and bombs among them, and counts
processes and memory.
"""

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from math_verify import parse, verify

from tokensqueeze.verifiers import math_equivalence
from tokensqueeze.verifiers.math_answer import MathVerifier
from tokensqueeze.verifiers.verdict import Answered
from tokensqueeze.verifiers.written_math import readable, same_plainly

PAIRS = Path(__file__).parents[1] / "tests/fixtures/math_pairs.tsv"
BATCH = 512
LATENCIES = 500
CRASH, HANG = "\\text{crash the child}", "\\text{hang the child}"
BOMBS = ("9^{9^{9^9}}", "{" * 3_000 + "1" + "}" * 3_000, "\\sqrt{" * 400 + "2" + "}" * 400, "1" * 9_999 + "+x")

Pair = tuple[str, str]
"""Gold answer and answer."""
warm_up = math_equivalence.warm_up


def equivalent(gold_answer: str, answer: str) -> bool:
    """Compare as a run does, but crash or hang where the soak's answers say so."""
    if answer == CRASH:
        os._exit(3)
    if answer == HANG:
        time.sleep(600)
    return math_equivalence.equivalent(gold_answer, answer)


@dataclass(frozen=True)
class Rate:
    verdicts_per_second: float
    verdicts_per_cpu_second: float
    verdicts: Counter[str]


def read_pairs(path: Path) -> list[Pair]:
    """Read the project's own table, or JSONL rows with `gold_answer` and `answer`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        return [(row["gold_answer"], row["answer"]) for row in map(json.loads, lines)]
    return [(gold_answer, answer) for _, gold_answer, answer in (line.split("\t") for line in lines[1:])]


def needs_math_verify(pair: Pair) -> bool:
    return same_plainly(*pair) is None and same_plainly(readable(pair[0]), readable(pair[1])) is None


def anew(pairs: Sequence[Pair], seed: int) -> Iterator[Pair]:
    """Yield the pairs again and again, each time with other digits."""
    order = random.Random(seed)
    while True:
        for gold_answer, answer in order.sample(pairs, len(pairs)):
            digits = str.maketrans("123456789", "".join(order.sample("123456789", 9)))
            yield gold_answer.translate(digits), answer.translate(digits)


def as_completion(pair: Pair) -> Answered:
    return Answered(f"<think>Let me see.</think>\n\nThe answer is $\\boxed{{{pair[1]}}}$.", pair[0], "stop")


def rate_of(judge: Callable[[list[Pair]], list[str]], items: Iterator[Pair], seconds: float, batch: int = BATCH) -> Rate:
    verdicts = Counter[str]()
    start, cpu_before = time.perf_counter(), cpu_seconds()
    while time.perf_counter() - start < seconds:
        verdicts.update(judge(list(islice(items, batch))))
    total = verdicts.total()
    return Rate(total / (time.perf_counter() - start), total / (cpu_seconds() - cpu_before), verdicts)


def plainly(pairs: list[Pair]) -> list[str]:
    """Judge as Math-Verify's readme does."""
    return [
        "correct" if verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}")) else "incorrect"
        for gold, answer in pairs
    ]


def measure(pairs: Sequence[Pair], processes: int, seconds: float) -> dict[str, object]:
    hard = [pair for pair in pairs if needs_math_verify(pair)]
    figures: dict[str, object] = {
        "processes": processes,
        "pairs": len(pairs),
        "share_math_verify": round(len(hard) / len(pairs), 3),
    }
    with MathVerifier(timeout_seconds=5, think_end="</think>", processes=processes) as verifier:

        def judge(batch: list[Pair]) -> list[str]:
            return [judgement.verdict for judgement in verifier.judge([as_completion(pair) for pair in batch])]

        judge(list(islice(anew(hard, 0), BATCH)))  # children started, parsers warm
        for name, mix in (("", pairs), ("hard_", hard)):
            ours = rate_of(judge, anew(mix, 1), seconds)
            peer = rate_of(plainly, anew(mix, 1), seconds, batch=16)
            print(f"{name or 'ordinary '}: {ours}; plain Math-Verify {peer}", flush=True)
            figures[f"{name}verdicts_per_second"] = round(ours.verdicts_per_second, 1)
            figures[f"{name}verdicts_per_cpu_second"] = round(ours.verdicts_per_cpu_second, 1)
            figures[f"{name}plain_math_verify_per_cpu_second"] = round(peer.verdicts_per_cpu_second, 1)
            figures[f"{name}plain_math_verify_per_second"] = round(peer.verdicts_per_second, 1)
            figures[f"{name}ratio"] = round(ours.verdicts_per_second / peer.verdicts_per_second, 2)
        figures["p99_milliseconds"] = round(1000 * latency_p99(judge, anew(pairs, 2)), 1)
    return figures


def latency_p99(judge: Callable[[list[Pair]], list[str]], items: Iterator[Pair]) -> float:
    """Return the 99th percentile of one verdict's time in seconds, each asked for alone."""
    times: list[float] = []
    for pair in islice(items, LATENCIES):
        start = time.perf_counter()
        judge([pair])
        times.append(time.perf_counter() - start)
    return sorted(times)[int(0.99 * LATENCIES)]


def cpu_seconds() -> float:
    """Return the processor time of this process and its living children: what other work on the machine can't take away."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in family()]
    return sum(int(stat[11]) + int(stat[12]) for stat in fields) / os.sysconf("SC_CLK_TCK")


def family() -> dict[int, int]:
    """Return the process ids of this process and its children, with their resident memory in MiB; zombies have 0."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [os.getpid(), *(int(pid) for task in tasks for pid in task.read_text().split())]
    page = os.sysconf("SC_PAGE_SIZE")
    return {pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page // 2**20 for pid in pids}


def with_bad_ones(items: Iterator[Pair], every: int) -> Iterator[Pair]:
    """Yield the items, and in place of one in `every` a hang, a crash or a bomb in turn."""
    bad = cycle([HANG, CRASH, *BOMBS])
    for number, (gold_answer, answer) in enumerate(items):
        yield gold_answer, next(bad) if number % every == every // 2 else answer


def soak(
    pairs: Sequence[Pair], verdicts: int, processes: int, timeout_seconds: float = 2.0, bad_every: int = 1_000
) -> dict[str, object]:
    """Give so many verdicts, and say what processes and memory there were before, on the way and after."""
    before, counts, steps = family(), Counter[str](), list[dict[str, object]]()
    items = with_bad_ones(anew(pairs, 3), bad_every)
    # Descriptors leak as quietly as processes.
    descriptors = len(os.listdir("/proc/self/fd"))
    start = time.perf_counter()
    with MathVerifier(
        timeout_seconds=timeout_seconds, think_end="</think>", processes=processes, equivalence="benchmarks.verifier_throughput"
    ) as verifier:
        while (done := counts.total()) < verdicts:
            batch = list(islice(items, min(BATCH, verdicts - done)))
            judgements = verifier.judge([as_completion(pair) for pair in batch])
            counts.update(f"{judgement.verdict}{f': {judgement.cause}' if judgement.cause else ''}" for judgement in judgements)
            if done // (verdicts // 10 or 1) != counts.total() // (verdicts // 10 or 1):
                now = family()
                parent = now.pop(os.getpid())
                steps.append({"verdicts": counts.total(), "parent_mib": parent, "children_mib": sorted(now.values())})
                print(json.dumps(steps[-1]), flush=True)
    seconds, after = time.perf_counter() - start, family()
    return {
        "verdicts": counts.total(),
        "seconds": round(seconds, 1),
        "counts": dict(counts),
        "processes_before": len(before),
        "processes_after": len(after),
        "descriptors_before": descriptors,
        "descriptors_after": len(os.listdir("/proc/self/fd")),
        "parent_mib_before": before[os.getpid()],
        "parent_mib_after": after[os.getpid()],
        "steps": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, default=PAIRS, help="JSONL with gold_answer and answer")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--soak", type=int, default=0, metavar="VERDICTS")
    parser.add_argument(
        "--bad-every", type=int, default=1_000, help="one answer in so many of a soak hangs, crashes or is a bomb"
    )
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.answers)
    if arguments.soak:
        print(json.dumps(soak(pairs, arguments.soak, arguments.processes, bad_every=arguments.bad_every)))
    else:
        print(json.dumps(measure(pairs, arguments.processes, arguments.seconds)))


if __name__ == "__main__":
    main()
