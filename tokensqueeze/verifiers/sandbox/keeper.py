"""One run's keeper, a process of its own outside the sandbox: it closes the sandbox, watches the program, and ends it.

What it watches: the time, the memory and processes of all the program has started, and the line to whoever asked for the
run; if that goes silent the program goes too.
"""

import json
import os
import select
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokensqueeze.verifiers.sandbox import bubblewrap, jail, kernel
from tokensqueeze.verifiers.sandbox.confined import LIBRARY, Standing, run_confined, take_places
from tokensqueeze.verifiers.sandbox.limits import FOLDER_FILES, Limits

Isolation = Literal["namespaces", "bubblewrap", "rlimits"]

_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.05, 0.025
_OWN_USERS = 1 << 30
"""As root, a program under limits alone becomes a user that nobody else is: this plus a process number."""
_USERS_ROOM = 256
"""An ordinary user's limit counts all that user's processes, which come and go: it is set so far off, and this looks closer."""
_SLACK_PROCESSES = 4
"""Over the limit that the kernel keeps: bubblewrap's own, and processes that are just ending."""


@dataclass(frozen=True)
class Descriptors:
    """What a run is given: its line to the host, then what the program has as 0, 1, 2 and further."""

    control: int
    program: Sequence[int]


@dataclass(frozen=True)
class Machine:
    """What stays open of the machine's own file system."""

    proc: int
    """Its /proc, a folder."""
    library: int
    """Python's standard library, a folder."""


def keep(isolation: Isolation, limits: Limits, descriptors: Descriptors, machine: Machine) -> None:
    """Run a program and report how it ended."""
    proc = machine.proc
    started = time.monotonic()
    control = socket.socket(fileno=descriptors.control)
    folder = tempfile.mkdtemp(prefix=f"program-{os.getppid()}-") if isolation == "rlimits" else None
    try:
        if isolation == "namespaces":
            jail.enter_namespaces(proc)
        else:
            kernel.adopt_orphans()
        child = os.fork()
        if child == 0:
            _start(isolation, limits, descriptors, machine, folder)
        for descriptor in descriptors.program:
            os.close(descriptor)
        cause = _watch(child, started, limits, control, proc, folder)
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        _end_orphans(proc)
    finally:
        if folder:
            _remove(folder)
    seconds = usage.ru_utime + usage.ru_stime
    exit_code = os.waitstatus_to_exitcode(status)
    if isolation == "bubblewrap" and exit_code > 128:
        exit_code = 128 - exit_code  # So it passes on a signal, as a shell does.
    if cause is None and exit_code == -signal.SIGKILL and seconds >= limits.cpu_seconds - 0.1:
        cause = "timeout"
    control.sendall(json.dumps({"cause": cause, "exit_code": exit_code, "cpu_seconds": seconds}).encode() + b"\n")


def _start(isolation: Isolation, limits: Limits, descriptors: Descriptors, machine: Machine, folder: str | None) -> None:
    """Become the program; never returns."""
    try:
        # Else a signal to its own process group would reach its keeper.
        os.setsid()
        if isolation == "bubblewrap":
            if os.getuid() == 0:
                jail.become(jail.NOBODY)
            take_places(descriptors.program)
            bubblewrap.execute(limits.file_bytes * FOLDER_FILES)
        elif isolation == "namespaces":
            take_places(descriptors.program)
            run_confined(Standing(other_processes=1, home="/tmp", folder_bytes=limits.file_bytes * FOLDER_FILES))
        else:
            assert folder
            user = os.getuid()
            others = 0 if user == 0 else _tasks_of(machine.proc, user) + _USERS_ROOM
            if user == 0:
                os.chown(folder, _OWN_USERS + os.getppid(), -1)
                jail.become(_OWN_USERS + os.getppid())
            os.chdir(folder)
            take_places((*descriptors.program, machine.library))
            library = None if os.access(LIBRARY, os.R_OK | os.X_OK) else len(descriptors.program)
            run_confined(Standing(other_processes=others, home=folder, library=library))
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        # What lies behind the fork is not this process' to do.
        os._exit(70)


def _watch(child: int, started: float, limits: Limits, control: socket.socket, proc: int, folder: str | None) -> str | None:
    """Wait for the program's end; return why it has to be ended, or nothing if it has come by itself."""
    ending = os.pidfd_open(child)
    deadline = started + limits.wall_seconds
    look = started + _FIRST_LOOK_SECONDS
    poll = select.poll()
    poll.register(ending, select.POLLIN)
    poll.register(control, select.POLLIN | select.POLLHUP)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(1000 * max(0.0, min(look, deadline) - time.monotonic()))}
        if ending in ready:
            return None
        if control.fileno() in ready:
            return "stopped"
        now = time.monotonic()
        if now >= deadline:
            return "timeout"
        if now >= look:
            if cause := _excess(child, limits, proc, folder):
                return cause
            look = time.monotonic() + _LOOK_SECONDS


def _excess(child: int, limits: Limits, proc: int, folder: str | None) -> str | None:
    pages = tasks = 0
    for process in (child, *_descendants(proc, child)):
        pages += int(next(iter(_read(proc, f"{process}/statm").split()[1:2]), 0))
        tasks += len(_list(proc, f"{process}/task"))
    if pages * os.sysconf("SC_PAGE_SIZE") > limits.memory_bytes:
        return "memory"
    if tasks > limits.processes + _SLACK_PROCESSES:
        return "processes"
    if folder and _size(folder) > limits.file_bytes * FOLDER_FILES:
        return "files"
    return None


def _descendants(proc: int, process: int | str) -> Iterator[int]:
    for task in _list(proc, f"{process}/task"):
        for child in _read(proc, f"{process}/task/{task}/children").split():
            yield int(child)
            yield from _descendants(proc, child)


def _end_orphans(proc: int) -> None:
    """Kill what the program has left behind, which has come to this process, until nothing is left."""
    while children := list(_descendants(proc, "self")):
        for process in children:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _tasks_of(proc: int, user: int) -> int:
    """Return how many processes and threads a user has."""
    count = 0
    for name in os.listdir(proc):
        if name.isdecimal():
            try:
                count += len(_list(proc, f"{name}/task")) if os.stat(name, dir_fd=proc).st_uid == user else 0
            except OSError:
                continue
    return count


def _size(folder: str) -> int:
    """Return the bytes on disk below a folder, without following links."""
    total, folders = 0, [folder]
    while folders:
        try:
            for entry in os.scandir(folders.pop()):
                status = entry.stat(follow_symlinks=False)
                total += status.st_blocks * 512
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.path)
        except OSError:
            continue
    return total


def _remove(folder: str) -> None:
    def open_up(function: Any, path: str, _: Any) -> None:
        Path(path).parent.chmod(0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            Path(path).chmod(0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            function(path)

    shutil.rmtree(folder, onerror=open_up)


def _read(proc: int, path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY, dir_fd=proc)
    except OSError:
        return ""  # It has ended in the meantime.
    with open(descriptor) as file:
        try:
            return file.read()
        except OSError:
            return ""


def _list(proc: int, path: str) -> list[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    except OSError:
        return []
    try:
        return os.listdir(descriptor)
    except OSError:
        return []
    finally:
        os.close(descriptor)
