"""A child process that compares answers and can be killed: sympy may hang, eat memory or crash on what a model writes.

It is a fresh interpreter at the end of a socket: not a fork, because a forked child of a process with torch threads
hangs, and not `multiprocessing`'s spawn, which imports the parent's main module anew (under Ray, Ray's own).
"""

import json
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe

from tokensqueeze.errors import MissingPackageError, StageError

START_SECONDS = 120.0
"""A cold file system can take long over sympy's thousand files."""
MEMORY_BYTES = 4 * 2**30
"""Address space of one child: 10^(10^10) has ten billion digits, and must not take the machine with it."""

WORN_AFTER_ANSWERS = 20_000
WORN_AT_BYTES = 2**30
"""A child that is this big, or has answered so many questions, is replaced: its caches only grow."""

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tokensqueeze.verifiers.judge_process import serve; serve(*sys.argv[2:])"
)
_ORPHAN_CPU_SECONDS = 10
_LAST_WORDS_SECONDS = 5

Question = tuple[str, str]
"""Gold answer and extracted answer."""
Outcome = bool | str
"""Whether the answers are the same, or why that is not known."""


class JudgeProcess:
    """One child, started at once and ready about a second later."""

    def __init__(self, module: str, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self.connection, childs_end = Pipe()
        with childs_end:
            descriptor = childs_end.fileno()
            # The parent's sys.path, because Ray may have shipped the package without installing it.
            arguments = [json.dumps(sys.path), str(descriptor), module, str(timeout_seconds)]
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _BOOT, *arguments],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the parent, which kills this child on its way out.
            )
        self.alive, self.started = True, False
        self.questions = deque[Question]()
        """Those in hand, the one it works on first."""
        self.deadline = time.monotonic() + START_SECONDS
        """In seconds of `time.monotonic()`."""
        self._answered, self._bytes = 0, 0

    @property
    def idle(self) -> bool:
        return self.started and not self.questions

    @property
    def worn(self) -> bool:
        return self._answered >= WORN_AFTER_ANSWERS or self._bytes >= WORN_AT_BYTES

    def ask(self, questions: Iterable[Question]) -> None:
        """Hand questions to an idle child; work on the first and its clock start. Raises `ConnectionError` if it is dead."""
        # A socket may take a message for a child that is already dead.
        if self._process.poll() is not None:
            raise ConnectionResetError("the child is dead")
        questions = list(questions)
        self.connection.send(questions)
        self.questions.extend(questions)
        self.deadline = time.monotonic() + self._timeout_seconds

    def outcome(self) -> tuple[Question | None, Outcome]:
        """Return the first question in hand and its outcome; the clock of the next starts.

        A child that has not spoken is killed; what it had in hand behind this question stays in `questions`. A child's first
        outcome is that of its start, "" if all is well. Raises `MissingPackageError` if it has found no Math-Verify.
        """
        try:
            reply: tuple[Outcome, int] = self.connection.recv() if self.connection.poll() else ("timeout", 0)
            self.alive = reply[0] != "timeout"
        except (EOFError, ConnectionResetError):
            reply, self.alive = ("crash", 0), False
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_LAST_WORDS_SECONDS)
        outcome, self._bytes = reply
        if not self.alive:
            self.kill()
        elif not self.started:
            if outcome:
                raise MissingPackageError(f"the verifier can't start: {outcome}; pip install 'tokensqueeze[run]'")
            self.started = True
        self._answered += 1
        self.deadline = time.monotonic() + self._timeout_seconds
        return (self.questions.popleft() if self.questions else None), outcome

    def start_error(self, attempts: int) -> StageError:
        return StageError(
            f"the verifier's process died or hung {attempts} times while starting, at last with exit status "
            f"{self._process.returncode}; its own words are on stderr; see that there is memory left, and that "
            f"`{sys.executable} -c 'import math_verify'` works"
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()


def serve(file_descriptor: str, module_name: str, timeout_seconds: str) -> None:
    """Run in the child: answer questions, by the module's `equivalent(gold, answer)`, until the parent hangs up."""
    with Connection(int(file_descriptor)) as connection, suppress(BrokenPipeError):
        try:
            module = import_module(module_name)
        except ImportError as error:
            connection.send((str(error) or "ImportError", 0))
            return
        module.warm_up()
        _limit(resource.RLIMIT_AS, MEMORY_BYTES)
        connection.send(("", 0))
        while True:
            try:
                questions: list[Question] = connection.recv()
            except EOFError:
                return
            for gold_answer, answer in questions:
                # If the parent is killed in the meantime nobody kills this child; then the kernel does.
                _limit(resource.RLIMIT_CPU, int(time.process_time() + float(timeout_seconds)) + _ORPHAN_CPU_SECONDS)
                try:
                    outcome: Outcome = bool(module.equivalent(gold_answer, answer))
                except Exception as error:  # carried to the parent, which gives it its verdict
                    outcome = f"error: {type(error).__name__}"
                connection.send((outcome, _resident_bytes()))


def _resident_bytes() -> int:
    # Not `ru_maxrss`, which a child takes over from the parent that started it.
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _limit(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
