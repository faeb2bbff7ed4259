"""The worker's end of the sandbox: start runs, read what they say, stop them. Several threads may each have their own."""

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokensqueeze.errors import StageError
from tokensqueeze.verifiers.sandbox.keeper import Isolation
from tokensqueeze.verifiers.sandbox.limits import Limits

START_SECONDS = 60.0
LAST_SECONDS = 20.0
"""What a keeper has for its end: a kernel under load takes its time to free what a program held."""
_ROOT = str(Path(__file__).parents[3])
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); from tokensqueeze.verifiers.sandbox.spawner import main; "
    "sys.path.remove(sys.argv[1]); main(*sys.argv[2:])"
)
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/", "PYTHONHASHSEED": "0"}
"""All that a program could find of the worker's. Text is hashed the same in every run, for equal verdicts."""
_MAX_SAID_BYTES = 64 * 2**20
"""All that a run may send here besides what it prints: the values that its function returns."""
_CHUNK = 65536


class Sandbox(AbstractContextManager["Sandbox"]):
    """Runs under one kind of isolation. Raises `StageError` where it can't be had."""

    def __init__(self, isolation: Isolation) -> None:
        self.isolation: Isolation = isolation
        self._lock = threading.Lock()
        self._start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self, job: Mapping[str, Any], limits: Limits, *, stdin: int, link: socket.socket | None = None) -> "Run":
        """Start one run. It has `stdin` as standard input, and `link` beside it."""
        return Run(self, job, limits, stdin=stdin, link=link)

    def request(self, limits: Limits, descriptors: list[int]) -> None:
        """Have the spawner fork a keeper, and another spawner if that one is dead."""
        message = json.dumps(asdict(limits)).encode()
        with self._lock:
            try:
                socket.send_fds(self._requests, [message], descriptors)
            except OSError:
                self.close()
                self._start()
                socket.send_fds(self._requests, [message], descriptors)

    def _start(self) -> None:
        self._requests, childs_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        interpreter = getattr(sys, "_base_executable", sys.executable)
        with childs_end:
            descriptor = childs_end.fileno()
            self._process = subprocess.Popen(
                [interpreter, "-S", "-s", "-P", "-B", "-c", _BOOT, _ROOT, str(descriptor), self.isolation],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is for the worker, whose end ends this process too.
            )
        self._requests.settimeout(START_SECONDS)
        try:
            answer = self._requests.recv(_CHUNK)
        except TimeoutError:
            answer = b"no answer in time"
        if answer != b"ready":
            self.close()
            raise StageError(answer.decode() or f"its process ended with status {self._process.returncode}")
        self._requests.settimeout(None)

    def close(self) -> None:
        self._requests.close()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Run:
    """One program or checker in its sandbox, from the worker's side."""

    def __init__(
        self, sandbox: Sandbox, job: Mapping[str, Any], limits: Limits, *, stdin: int, link: socket.socket | None
    ) -> None:
        self.ready = False
        """The sandbox is closed; what happens from here on is the program's doing."""
        self.messages: list[Any] = []
        self.stdout = bytearray()
        self.last_words = bytearray()
        """What a sandbox that could not be closed has said of it."""
        self.report: dict[str, Any] | None = None
        """How it ended: `cause` why it was ended, `exit_code`, or `failed` for a sandbox that could not be closed."""
        self.stopped_for: str | None = None
        self._control, keepers_control = socket.socketpair()
        self._job, programs_job = socket.socketpair()
        self._out, programs_out = os.pipe()
        self._err, programs_err = os.pipe()
        try:
            given = [keepers_control.fileno(), stdin, programs_out, programs_err, programs_job.fileno()]
            sandbox.request(limits, given + ([link.fileno()] if link else []))
        except BaseException:
            self.close()
            raise
        finally:
            keepers_control.close()
            programs_job.close()
            os.close(programs_out)
            os.close(programs_err)
        self._open = 4
        self._lines = {"job": bytearray(), "control": bytearray()}
        self._said = 0
        self._printed = {"out": 0, "err": 0}
        # Who does not read it is dead, and its keeper will say so.
        with suppress(OSError):
            self._job.settimeout(limits.wall_seconds)
            self._job.sendall(json.dumps({**job, "limits": asdict(limits)}).encode() + b"\n")

    @property
    def ended(self) -> bool:
        """Whether the program and all it has started are gone, and all it has said is read."""
        return self._open == 0

    def watch(self, selector: selectors.BaseSelector, output_bytes: int) -> None:
        """Have a selector's events read what the run says; more output than `output_bytes` to either stream stops it."""
        for descriptor in (self._control.fileno(), self._job.fileno(), self._out, self._err):
            os.set_blocking(descriptor, False)

        def watched(descriptor: int, read: Callable[[bytes], None]) -> None:
            selector.register(descriptor, selectors.EVENT_READ, lambda: self._read(selector, descriptor, read))

        watched(self._out, lambda data: self._count("out", data, output_bytes))
        watched(self._err, lambda data: self._count("err", data, output_bytes))
        watched(self._job.fileno(), lambda data: self._lines_of("job", data))
        watched(self._control.fileno(), lambda data: self._lines_of("control", data))

    def stop(self, cause: str) -> None:
        """Have the keeper end the run; its report follows."""
        if self.stopped_for is None:
            self.stopped_for = cause
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for descriptor in (self._out, self._err):
            os.close(descriptor)
        self._job.close()
        self._control.close()

    def _read(self, selector: selectors.BaseSelector, descriptor: int, read: Callable[[bytes], None]) -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            read(data)
            return
        selector.unregister(descriptor)
        self._open -= 1

    def _count(self, stream: str, data: bytes, output_bytes: int) -> None:
        self._printed[stream] += len(data)
        if self._printed[stream] > output_bytes:
            self.stop("output")
        elif stream == "out":
            self.stdout += data
        elif not self.ready:
            self.last_words += data

    def _lines_of(self, source: str, data: bytes) -> None:
        self._said += len(data)
        if self._said > _MAX_SAID_BYTES:
            self.stop("output")
            if source == "job":
                return
        buffer = self._lines[source]
        buffer += data
        if b"\n" in data:
            *lines, rest = bytes(buffer).split(b"\n")
            self._lines[source] = bytearray(rest)
            for line in lines:
                self._take(source, line)

    def _take(self, source: str, line: bytes) -> None:
        # A program may write here itself, and anything.
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = {"died": "exception: unreadable"}
        if source == "control":
            self.report = message
        elif not self.ready:
            self.ready = isinstance(message, dict) and message.get("ready") is True
        else:
            self.messages.append(message)


class Watching(AbstractContextManager["Watching"]):
    """Reads what runs say while they go; leaving its context stops those that still do, and waits until they are gone."""

    def __init__(self, runs: Sequence[Run], output_bytes: int) -> None:
        self._runs = runs
        self._selector = selectors.DefaultSelector()
        for run in runs:
            run.watch(self._selector, output_bytes)

    def __exit__(self, *exception: object) -> None:
        for run in self._runs:
            run.stop("done")
        with suppress(TimeoutError):
            self.until(lambda: all(run.ended for run in self._runs), LAST_SECONDS)
        self._selector.close()
        for run in self._runs:
            run.close()

    def until(self, happened: Callable[[], bool], seconds: float) -> None:
        """Read until something has happened. Raises `TimeoutError`."""
        deadline = time.monotonic() + seconds
        while not happened():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"nothing of it in {seconds:g} s")
            for key, _ in self._selector.select(left) if self._selector.get_map() else ():
                key.data()
            if not self._selector.get_map() and not happened():
                raise TimeoutError("all runs have ended without it")
