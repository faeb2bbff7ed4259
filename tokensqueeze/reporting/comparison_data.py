"""What a comparison of models is made of: their traces on the same problems, and what is measured on them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tokensqueeze.metrics.comparison import AgainstFirst, ProblemChange, against_first, largest_changes
from tokensqueeze.metrics.difficulty import DifficultyBin, by_difficulty, by_level, measured_half, sorted_apart
from tokensqueeze.metrics.evaluation import Cell, measure
from tokensqueeze.metrics.token_budget import BudgetCurve, ForcedPoint, budget_curve, forced_curve
from tokensqueeze.schema import EvaluationTrace, ForcedTrace, Problem

_BUDGETS = 100
_MOST_PROBLEMS = 12


@dataclass(frozen=True)
class ComparedModel:
    name: str
    traces: Sequence[EvaluationTrace]
    """Of one decoding, on the section's problems; texts and token ids may be left out."""
    forced: Sequence[ForcedTrace]
    settings: Mapping[str, str]
    """How it was sampled and where its tables are, for the reader."""


@dataclass(frozen=True)
class Section:
    """One benchmark under one decoding: the first model is what the others are held against."""

    title: str
    token_budget: int
    models: Sequence[ComparedModel]
    problems: Mapping[str, Problem] | None
    """By id; None where an older run has not named its table of problems."""
    warnings: Sequence[str]
    """What makes the models less alike in all but themselves."""

    @cached_property
    def cells(self) -> list[Cell]:
        return [measure(model.traces, self.token_budget) for model in self.models]

    @cached_property
    def against_first(self) -> list[AgainstFirst]:
        return against_first(self._traces, self.token_budget)

    @cached_property
    def curves(self) -> list[BudgetCurve]:
        longest = max(trace.num_tokens for traces in self._traces for trace in traces)
        end = min(self.token_budget, longest)
        budgets = sorted({round(end * index / _BUDGETS) for index in range(_BUDGETS + 1)})
        return [budget_curve(traces, budgets) for traces in self._traces]

    @cached_property
    def forced(self) -> list[list[ForcedPoint]]:
        return [forced_curve(model.forced) for model in self.models]

    @cached_property
    def difficulty(self) -> list[list[DifficultyBin]] | None:
        """By the first model's pass rate, which half of its samples gives while the other half is measured, of all models."""
        first, *others = self._traces
        apart = sorted_apart(first)
        if apart is None:
            return None
        return [by_difficulty(own, apart.pass_rates) for own in (apart.measured, *map(measured_half, others))]

    @cached_property
    def levels(self) -> list[list[DifficultyBin]]:
        """By the data set's own levels; empty lists where it has none."""
        levels = {problem_id: problem.level for problem_id, problem in (self.problems or {}).items()}
        return [by_level(traces, levels) for traces in self._traces]

    @cached_property
    def largest_changes(self) -> list[ProblemChange]:
        return largest_changes(self._traces, _MOST_PROBLEMS)

    @property
    def _traces(self) -> list[Sequence[EvaluationTrace]]:
        return [model.traces for model in self.models]


@dataclass(frozen=True)
class Comparison:
    sections: Sequence[Section]
    version: str
    """Of tokensqueeze."""
    notes: Sequence[str] = ()
    """What was left out of the whole."""


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return every figure of a comparison: ready for JSON, null where nothing is known."""
    return {
        "kind": "comparison",
        "tokensqueeze": comparison.version,
        "notes": list(comparison.notes),
        "sections": [_section_json(section) for section in comparison.sections],
    }


def _section_json(section: Section) -> dict[str, Any]:
    names = [model.name for model in section.models]
    difficulty = section.difficulty
    return {
        "title": section.title,
        "token_budget": section.token_budget,
        "warnings": list(section.warnings),
        "models": [
            {"name": model.name, "settings": dict(model.settings), "cell": asdict(cell), "forced": [asdict(p) for p in forced]}
            for model, cell, forced in zip(section.models, section.cells, section.forced, strict=True)
        ],
        "against_first": dict(zip(names[1:], map(asdict, section.against_first), strict=True)),
        "curves": dict(zip(names, map(asdict, section.curves), strict=True)),
        "difficulty": None
        if difficulty is None
        else {n: [asdict(b) for b in own] for n, own in zip(names, difficulty, strict=True)},
        "levels": {name: [asdict(b) for b in own] for name, own in zip(names, section.levels, strict=True)},
        "largest_changes": [asdict(one) for one in section.largest_changes],
    }
