"""The demo's problems as a source: `demo:train`, `demo:dev` and `demo:test`."""

from collections.abc import Mapping
from typing import cast, get_args

from tokensqueeze.demo import world
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.raw_problem import RawProblem

PREFIX = "demo:"
DEFAULT_COUNTS: Mapping[world.Split, int] = {"train": 256, "dev": 64, "test": 256}
"""Problems drawn where the source sets no limit: the world itself has no end."""


def demo_problems(path: str, *, limit: int | None, seed: int, key: str) -> list[RawProblem]:
    """Draw problems of one split. Raises `ProblemsError` for a split that is not there."""
    split = path.removeprefix(PREFIX)
    if split not in get_args(world.Split):
        known = ", ".join(f"{PREFIX}{name}" for name in get_args(world.Split))
        raise ProblemsError(f"{key}: {path}: the demo has no split {split!r}; name one of {known}")
    known_split = cast(world.Split, split)
    drawn = world.problems(known_split, limit or DEFAULT_COUNTS[known_split], seed=seed)
    return [
        RawProblem(f"demo-{split}-{number:05d}", problem.question, str(problem.answer)) for number, problem in enumerate(drawn)
    ]
