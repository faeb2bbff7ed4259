"""What one run of a program may take. Standard library alone, as all that runs inside the sandbox."""

import math
import resource
from dataclasses import dataclass

OPEN_FILES = 128


@dataclass(frozen=True)
class Limits:
    wall_seconds: float
    cpu_seconds: float
    """Of each process."""
    memory_bytes: int
    """Address space of each process, and resident memory of all together."""
    processes: int
    """Processes and threads at a time."""
    file_bytes: int
    """Of each file; the folder holds `FOLDER_FILES` times that."""


FOLDER_FILES = 4


def set_limits(limits: Limits, *, other_processes: int) -> None:
    """Bind this process and its descendants; `other_processes` are the user's that the kernel counts with them."""
    # The kernel tells the soft limit by a signal that a program may ignore, the hard one by its end: both are the same here.
    _set(resource.RLIMIT_CPU, math.ceil(limits.cpu_seconds))
    _set(resource.RLIMIT_AS, limits.memory_bytes)
    _set(resource.RLIMIT_FSIZE, limits.file_bytes)
    _set(resource.RLIMIT_NPROC, limits.processes + other_processes)
    _set(resource.RLIMIT_NOFILE, OPEN_FILES)
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_MEMLOCK, 0)
    _set(resource.RLIMIT_MSGQUEUE, 0)


def _set(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (value, value))
