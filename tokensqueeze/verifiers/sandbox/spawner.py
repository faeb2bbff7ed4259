"""A small process that forks one keeper per run: a fresh interpreter would cost each program more than its tests.

It has never seen a gold answer, the worker's memory or its environment.
"""

import gc
import importlib
import json
import os
import signal
import socket

from tokensqueeze.verifiers.sandbox import bubblewrap, jail
from tokensqueeze.verifiers.sandbox.confined import LIBRARY
from tokensqueeze.verifiers.sandbox.keeper import Descriptors, Isolation, Machine, keep
from tokensqueeze.verifiers.sandbox.limits import Limits

REQUEST_BYTES = 4096
MAX_DESCRIPTORS = 6

# What programs import most; loaded here once for all of them.
_PRELOADED = (
    *("bisect", "collections", "collections.abc", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "io"),
    *("itertools", "json", "math", "operator", "random", "re", "statistics", "string", "threading", "time", "typing"),
)


def main(descriptor: str, isolation: Isolation) -> None:
    """Serve until the host hangs up. The first message says whether programs can be isolated so: "" or why not."""
    host = socket.socket(fileno=int(descriptor))
    machine = Machine(
        proc=os.open("/proc", os.O_RDONLY | os.O_DIRECTORY),
        library=os.open(LIBRARY, os.O_PATH | os.O_DIRECTORY),
    )
    try:
        if isolation == "namespaces":
            jail.enter_jail(machine.proc)
        elif isolation == "bubblewrap":
            bubblewrap.command(folder_bytes=1)
    except OSError as error:
        host.send(str(error.strerror or error).encode())
        return
    for name in _PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Keepers that have ended need nobody to ask for them.
    gc.collect()
    gc.freeze()
    host.send(b"ready")
    while True:
        request, descriptors, _, _ = socket.recv_fds(host, REQUEST_BYTES, MAX_DESCRIPTORS)
        if not request:
            return
        if os.fork() == 0:
            _become_keeper(host, isolation, request, Descriptors(descriptors[0], descriptors[1:]), machine)
        for received in descriptors:
            os.close(received)


def _become_keeper(
    host: socket.socket, isolation: Isolation, request: bytes, descriptors: Descriptors, machine: Machine
) -> None:
    """Keep one run; never returns."""
    try:
        host.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        keep(isolation, Limits(**json.loads(request)), descriptors, machine)
    except Exception as error:  # the run's host hears of it, whatever it is
        os.write(descriptors.control, json.dumps({"failed": str(error)}).encode() + b"\n")
    finally:
        os._exit(0)
