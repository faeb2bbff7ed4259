"""Does the code verifier pass HumanEval's own solutions, fail mutated ones, and at what price per program?

    python -m benchmarks.code_verifier --humaneval HumanEval.jsonl

A mutant is a solution with one thing changed: an operator, a constant, a condition, a returned value, the order of two
arguments. The peer runs each program with its asserts in a bare subprocess under resource limits, as evaluation scripts
do; where it and the verifier disagree about a mutant, one of them is wrong.
"""

import argparse
import ast
import json
import random
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tokensqueeze.code_problem import CodeTests
from tokensqueeze.config import CodeSettings
from tokensqueeze.verifiers.code_tests import CodeVerifier
from tokensqueeze.verifiers.verdict import Answered, Judgement

THINK_END = "</think>"
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Task:
    """One problem of HumanEval."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    @property
    def tests(self) -> CodeTests:
        return CodeTests(
            asserts=f"{self.test}\n\ncheck({self.entry_point})\n", prefix=self.prompt, entry_point=self.entry_point
        )


@dataclass(frozen=True)
class Mutant:
    task: Task
    kind: str
    before: str
    """The lines that it changes, as the solution has them."""
    after: str
    program: str


def mutants_of(task: Task) -> Iterator[Mutant]:
    """Yield the solution with each single change; changes that leave its text as it is are none."""
    source = task.prompt + task.canonical_solution
    tree = ast.parse(source)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == task.entry_point)
    original = ast.unparse(tree)
    for place in range(sum(1 for _ in ast.walk(function))):
        for kind in ("operator", "constant", "condition", "return", "arguments"):
            copy = ast.parse(source)
            twin = next(node for node in copy.body if isinstance(node, ast.FunctionDef) and node.name == task.entry_point)
            node = list(ast.walk(twin))[place]
            if not _mutate(node, kind):
                continue
            program = ast.unparse(ast.fix_missing_locations(copy))
            if program != original:
                lines = zip(original.split("\n"), program.split("\n"), strict=True)
                changed = [(before.strip(), after.strip()) for before, after in lines if before != after]
                before, after = ("\n".join(side) for side in zip(*changed, strict=True))
                yield Mutant(task, kind, before, after, program)


def _mutate(node: ast.AST, kind: str) -> bool:
    match kind, node:
        case "operator", ast.BinOp() | ast.AugAssign() if type(node.op) in SWAPPED:
            node.op = SWAPPED[type(node.op)]()  # type: ignore[assignment]
        case "operator", ast.BoolOp() if type(node.op) in SWAPPED:
            node.op = SWAPPED[type(node.op)]()  # type: ignore[assignment]
        case "operator", ast.Compare() if type(node.ops[0]) in SWAPPED:
            node.ops[0] = SWAPPED[type(node.ops[0])]()  # type: ignore[call-overload]
        case "constant", ast.Constant(value=bool()):
            node.value = not node.value
        case "constant", ast.Constant(value=int() | float() as value):
            node.value = value + 1
        case "condition", ast.If() | ast.While() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case "return", ast.Return(value=ast.expr()):
            node.value = ast.Constant(None)
        case "arguments", ast.Call() if len(node.args) >= 2:
            node.args[0], node.args[1] = node.args[1], node.args[0]
        case _:
            return False
    return True


def peer_passes(program: str, tests: CodeTests, settings: CodeSettings) -> bool:
    """Run a program and its asserts in one bare subprocess, with limits and a folder of its own."""

    def limit() -> None:
        for kind, value in (
            (resource.RLIMIT_AS, settings.memory_mib * 2**20),
            (resource.RLIMIT_CPU, int(settings.cpu_seconds) + 1),
            (resource.RLIMIT_FSIZE, settings.file_kib * 1024),
        ):
            resource.setrlimit(kind, (value, value))

    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", f"{program}\n{tests.asserts}"],
                cwd=folder,
                env={"PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=settings.wall_seconds,
                preexec_fn=limit,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def fenced(program: str, tests: CodeTests) -> Answered:
    return Answered(f"{THINK_END}\n```python\n{program}\n```\n", tests.to_json(), "stop", "code")


def read_tasks(path: Path) -> list[Task]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [Task(**{name: row[name] for name in Task.__annotations__}) for row in rows]


def timed(verifier: CodeVerifier, items: Sequence[Answered]) -> tuple[list[Judgement], float]:
    """Return the judgements and how many programs were judged in a second."""
    started = time.perf_counter()
    judgements = verifier.judge(items)
    return judgements, len(items) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--humaneval", type=Path, required=True, help="HumanEval.jsonl")
    parser.add_argument("--processes", type=int, default=2, help="programs at once")
    parser.add_argument("--mutants", type=int, default=2, help="mutants of each problem, drawn from all; 0: all")
    parser.add_argument("--wall-seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    tasks = read_tasks(arguments.humaneval)
    settings = CodeSettings(wall_seconds=arguments.wall_seconds, cpu_seconds=arguments.wall_seconds)
    mutants = [
        mutant
        for task in tasks
        for found in [list(mutants_of(task))]
        for mutant in (random.Random(task.task_id).sample(found, min(arguments.mutants or len(found), len(found))))
    ]

    with CodeVerifier(settings, think_end=THINK_END, processes=arguments.processes) as verifier:
        isolation = verifier.isolation
        whole, speed = timed(verifier, [fenced(task.prompt + task.canonical_solution, task.tests) for task in tasks])
        bodies, _ = timed(
            verifier, [Answered(THINK_END + task.canonical_solution, task.tests.to_json(), "stop", "code") for task in tasks]
        )
        judged, _ = timed(verifier, [fenced(mutant.program, mutant.task.tests) for mutant in mutants])

    with ThreadPoolExecutor(arguments.processes) as pool:
        started = time.perf_counter()
        peer_whole = list(
            pool.map(lambda task: peer_passes(task.prompt + task.canonical_solution, task.tests, settings), tasks)
        )
        peer_speed = len(tasks) / (time.perf_counter() - started)
        peer_mutants = list(pool.map(lambda mutant: peer_passes(mutant.program, mutant.task.tests, settings), mutants))

    survivors = [mutant for mutant, judgement in zip(mutants, judged, strict=True) if judgement.verdict == "correct"]
    disagreements = [
        (mutant, judgement, peer)
        for mutant, judgement, peer in zip(mutants, judged, peer_mutants, strict=True)
        if (judgement.verdict == "correct") != peer
    ]
    print(f"\n{len(survivors)} of {len(mutants)} mutants pass HumanEval's tests")
    for mutant in survivors:
        print(f"* {mutant.task.task_id} {mutant.task.entry_point}, {mutant.kind}:")
        print(textwrap.indent(f"{mutant.before}\n-> {mutant.after}", "    "))
    for mutant, judgement, peer in disagreements:
        print(f"! {mutant.task.task_id} {mutant.kind}: here {judgement.verdict} ({judgement.cause}), peer {peer}")
        print(textwrap.indent(f"{mutant.before}\n-> {mutant.after}", "    "))
    for task, judgement in zip([*tasks, *tasks], [*whole, *bodies], strict=True):
        if judgement.verdict != "correct":
            print(f"! {task.task_id}: {judgement.verdict} ({judgement.cause})")
    causes = Counter((judgement.cause or judgement.verdict).partition(": test")[0] for judgement in judged)
    print(
        json.dumps(
            {
                "isolation": isolation,
                "solutions": len(tasks),
                "correct_fenced": sum(judgement.verdict == "correct" for judgement in whole),
                "correct_as_bodies": sum(judgement.verdict == "correct" for judgement in bodies),
                "correct_by_peer": sum(peer_whole),
                "mutants": len(mutants),
                "mutants_by_outcome": dict(causes.most_common()),
                "disagreements_with_peer": len(disagreements),
                "programs_per_second": round(speed, 1),
                "peer_programs_per_second": round(peer_speed, 1),
                "time_over_peer": round(peer_speed / speed, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
