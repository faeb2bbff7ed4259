"""A planned table's folder: `<store>/<table>/<fingerprint>`, named by all that its rows depend on; and sets of problems."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensqueeze.fingerprint import fingerprint
from tokensqueeze.problems.prompts import PreparedProblems
from tokensqueeze.schema import Problem
from tokensqueeze.stages.stage import Stage
from tokensqueeze.tables import Table

RULES_VERSIONS = {
    "traces": 2,
    "verified_traces": 2,
    "step_candidates": 2,
    "refined_traces": 3,
    "scored_pairs": 2,
    "evaluation_base": 3,
    "evaluation_squeezed": 3,
}
"""Part of a table's fingerprint, else 1: raised when the code of its stage gives other rows for the same settings."""


@dataclass(frozen=True)
class ProblemSet:
    """The problems of one split, and the table they go to."""

    table: Table[Problem]
    fingerprint: str
    problems: list[Problem]
    per_shard: int
    dropped_too_long: list[str]

    def shards(self) -> list[list[Problem]]:
        """Return the problems in shards, each a fixed set that goes through all stages together."""
        starts = range(0, len(self.problems), self.per_shard)
        return [self.problems[start : start + self.per_shard] for start in starts]


@dataclass(frozen=True)
class Tables:
    store: Path
    num_shards: int

    def stage(
        self,
        name: str,
        row_type: type[Any],
        inputs: Mapping[str, Table[Any]],
        make_worker: Any,
        fingerprinted: Mapping[str, Any],
        *,
        runs_model: bool = False,
    ) -> Stage[Any]:
        output = Table(self.store / name / table_name(fingerprinted, RULES_VERSIONS.get(name, 1)), row_type)
        return Stage(name, output, inputs, self.num_shards, make_worker, fingerprinted, runs_model)


def table_name(fingerprinted: Mapping[str, Any], rules_version: int = 1) -> str:
    return fingerprint({"rules": rules_version, **fingerprinted})


def problem_set(prepared: PreparedProblems, table: str, store: Path, *, per_shard: int) -> ProblemSet:
    """Return prepared problems with the table they go to."""
    content = [[p.problem_id, p.question, p.gold_answer, p.answer_kind, p.level, p.prompt_token_ids] for p in prepared.problems]
    name = table_name({"problems": content, "per_shard": per_shard})
    return ProblemSet(Table(store / table / name, Problem), name, prepared.problems, per_shard, prepared.dropped_too_long)


def write_problems(problems: ProblemSet) -> None:
    """Write a split's table, unless it is there."""
    if problems.table.is_complete():
        return
    shards = problems.shards()
    for index, shard in enumerate(shards):
        problems.table.write_part(index, shard, {"rows": len(shard)})
    problems.table.complete(
        {
            "stage": problems.table.path.parent.name,
            "num_shards": len(shards),
            "dropped_too_long": problems.dropped_too_long,
        }
    )
