"""What the workers do alike: fail with one error, and hold parts of a model whole that ZeRO-3 has cut up among them.

Everything here is collective: every worker calls it, in the same order. Without a process group there is one worker.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from tokensqueeze.errors import TokenSqueezeError

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def from_all(value: T) -> list[T]:
    """Return every worker's value, by rank."""
    if num_workers() == 1:
        return [value]
    values: list[T | None] = [None] * num_workers()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def from_first(value: T) -> T:
    """Return the first worker's value."""
    return from_all(value)[0]


def raise_alike(error: TokenSqueezeError | None) -> None:
    """Raise the first worker's error on all of them, if one has any: who raises alone leaves the others waiting."""
    for raised in from_all(error):
        if raised is not None:
            raise raised


def whole_size(parameter: torch.Tensor) -> torch.Size:
    """Return a parameter's shape, also where ZeRO-3 has cut it up and left an empty tensor in its place."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def held_whole(parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Gather these parameters on every worker, to be read only, and let go of them again."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None):
        yield
