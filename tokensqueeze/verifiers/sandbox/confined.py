"""The last steps before a program runs, in the process that will be the program's: its place, its limits, its job."""

import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass

from tokensqueeze.verifiers.sandbox import jail, kernel
from tokensqueeze.verifiers.sandbox.channel import Channel
from tokensqueeze.verifiers.sandbox.limits import Limits, set_limits
from tokensqueeze.verifiers.sandbox.runner import JOB, run_job
from tokensqueeze.verifiers.sandbox.seccomp import deny_calls

LIBRARY = sysconfig.get_path("stdlib")
_JOB_BYTES = 2**30


@dataclass(frozen=True)
class Standing:
    """How a program stands to the machine, by its isolation."""

    other_processes: int
    """Those that the kernel counts with the program's."""
    home: str
    folder_bytes: int | None = None
    """Size of the folder to be mounted over /tmp; none where another has seen to it."""
    library: int | None = None
    """The standard library's open folder, where its path leads through folders that the program's user may not enter."""


def take_places(program: Sequence[int]) -> None:
    """Move the program's files to 0, 1, 2 and further, and close all others."""
    # First above where they are to go, so that none is overwritten before it is moved.
    above = [os.dup(descriptor) for descriptor in program]
    raised = [os.dup2(descriptor, 64 + place) for place, descriptor in enumerate(above)]
    for place, descriptor in enumerate(raised):
        os.dup2(descriptor, place)
    os.closerange(len(raised), max(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def run_confined(standing: Standing) -> None:
    """Take up the job that waits at the descriptor `JOB`, close the last doors and do it; ends the process."""
    host = Channel(JOB)
    job = host.receive(_JOB_BYTES)
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", LANG="C.UTF-8", HOME=standing.home, TMPDIR=standing.home)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if standing.folder_bytes is not None:
        jail.mount_temporary(standing.folder_bytes)
        kernel.drop_capabilities()
    if standing.library is not None:
        _import_from(standing.library)
    kernel.die_with_parent(signal.SIGKILL)
    set_limits(Limits(**job.pop("limits")), other_processes=standing.other_processes)
    deny_calls()
    host.send({"ready": True})
    run_job(job, host)


def _import_from(library: int) -> None:
    """Import the standard library by way of its open folder."""
    reachable = f"/proc/self/fd/{library}"
    sys.path[:] = [entry.replace(LIBRARY, reachable, 1) for entry in sys.path]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if folders := getattr(module, "__path__", None):
            module.__path__ = [folder.replace(LIBRARY, reachable, 1) for folder in folders]


def main() -> None:
    """Inside bubblewrap, which has seen to files, users and network."""
    # Else a signal to its own process group would reach bubblewrap.
    os.setsid()
    run_confined(Standing(other_processes=1, home="/tmp"))
