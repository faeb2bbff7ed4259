"""Folders as `tokensqueeze evaluate` and `tokensqueeze run` leave them, with tables written by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokensqueeze.schema import Decoding, EvaluationTrace, ForcedTrace, Problem
from tokensqueeze.tables import Table

DECODING: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "num_samples": 2, "max_tokens": 1000, "greedy": False, "seed": 0}

# Per problem the samples: so many tokens and right (+), or so many and wrong (−).
Outcomes = Mapping[str, Sequence[int]]


def problem(problem_id: str, **changed: Any) -> Problem:
    plain = Problem(problem_id, f"What is {problem_id}?", "42", "…", [1, 2], level=None)
    return replace(plain, **changed)


def traces(outcomes: Outcomes, decoding: Decoding = "sampled", *, limit: int = 1000) -> list[EvaluationTrace]:
    return [
        EvaluationTrace(
            trace_id=f"{problem_id}/{decoding}/{index}",
            problem_id=problem_id,
            sample_index=index,
            # Far more characters than tokens: a length that counted them would show.
            text="word " * 50 * abs(tokens),
            token_ids=list(range(abs(tokens))),
            num_tokens=abs(tokens),
            finish_reason="length" if abs(tokens) >= limit else "stop",
            verdict="correct" if tokens > 0 else "incorrect",
            extracted_answer=None,
            verdict_cause=None,
            thinking_tokens=abs(tokens) - min(5, abs(tokens)),
            answer_tokens=min(5, abs(tokens)),
            decoding=decoding,
        )
        for problem_id, own in outcomes.items()
        for index, tokens in enumerate(own)
    ]


def forced(outcomes: Outcomes, thinking_budget: int) -> list[ForcedTrace]:
    return [ForcedTrace(**vars(t), thinking_budget=thinking_budget, was_forced=True) for t in traces(outcomes)]


def evaluation_folder(
    folder: Path,
    benchmarks: Mapping[str, Sequence[EvaluationTrace]],
    *,
    problems: Sequence[Problem] | None = None,
    forced_traces: Sequence[ForcedTrace] = (),
    token_budget: int = 1000,
    **decoding: Any,
) -> str:
    """Write what `tokensqueeze evaluate` leaves and return the folder's name."""
    entries = {}
    for name, own in benchmarks.items():
        asked = problems or [problem(problem_id) for problem_id in dict.fromkeys(trace.problem_id for trace in own)]
        rows: dict[str, tuple[type, Sequence[Any]]] = {"problems": (Problem, asked), "evaluation": (EvaluationTrace, own)}
        rows |= {"forced": (ForcedTrace, forced_traces)} if forced_traces else {}
        entries[name] = {
            "token_budget": token_budget,
            "decoding": DECODING | decoding,
            "cells": {},
            "forced": {},
            "tables": {"forced": None} | {kind: written(folder, f"{kind}_{name}", *own) for kind, own in rows.items()},
        }
    content = {
        "kind": "evaluation",
        "model": "tiny",
        "model_path": "models/tiny",
        "versions": {"tokensqueeze": "0.1.0"},
        "benchmarks": entries,
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    return str(folder)


def run_folder(
    folder: Path,
    base: Sequence[EvaluationTrace],
    squeezed: Sequence[EvaluationTrace] | None,
    *,
    with_problems: bool = True,
) -> str:
    """Write what `tokensqueeze run` leaves and return the folder's name."""
    tables = {"evaluation_base": written(folder, "evaluation_base", EvaluationTrace, base)}
    if squeezed is not None:
        tables["evaluation_squeezed"] = written(folder, "evaluation_squeezed", EvaluationTrace, squeezed)
    if with_problems:
        asked = [problem(problem_id) for problem_id in dict.fromkeys(trace.problem_id for trace in base)]
        tables["problems_test"] = written(folder, "problems_test", Problem, asked)
    settings = {"evaluation": DECODING | {"token_budget": 1000}, "model": {"path": "demo"}}
    (folder / "run.json").write_text(json.dumps({"settings": settings, "versions": {}, "tables": tables}))
    return str(folder)


def written(folder: Path, name: str, row_type: type, rows: Sequence[Any]) -> str:
    """Write a table in two parts and return its path from the folder."""
    table = Table(folder / "tables" / name / "0123456789abcdef", row_type)
    table.write_part(0, rows[: len(rows) // 2], {})
    table.write_part(1, rows[len(rows) // 2 :], {})
    table.complete({"num_shards": 2})
    return str(table.path.relative_to(folder))
