"""What a program can't do: each tries to, prints what became of it, and is run under every isolation there is here."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from tokensqueeze.code_problem import CodeTest, CodeTests
from tokensqueeze.config import CodeSettings
from tokensqueeze.errors import StageError
from tokensqueeze.verifiers.code_tests import tried_sandbox
from tokensqueeze.verifiers.code_trial import Outcome, try_program
from tokensqueeze.verifiers.program_text import Program
from tokensqueeze.verifiers.sandbox import bubblewrap
from tokensqueeze.verifiers.sandbox.host import Sandbox
from tokensqueeze.verifiers.sandbox.keeper import Isolation
from tokensqueeze.verifiers.sandbox.seccomp import filter_program

ROOT = Path(__file__).parents[2]
SETTINGS = CodeSettings(wall_seconds=30, cpu_seconds=5, memory_mib=256, max_processes=6, output_kib=64, file_kib=1024)
HURRIED = SETTINGS.model_copy(update={"wall_seconds": 1.5})
"""For programs that end by their time alone."""

# Lines of a program that tries something, and prints how the system has answered.
TRY = "def attempt(f, *a):\n    try: return f(*a)\n    except OSError as e: return type(e).__name__\n"
NAME = "import ctypes\nctypes.CDLL(None).prctl(15, b'{mark}')\n"
"""Gives the process a name to look for."""

REFUSED = "PermissionError"
DONE: dict[str, tuple[str, str]] = {
    "reads the environment": ("import os\nprint(sorted(os.environ), 'SECRET-TOKEN' in str(os.environ))",
                              "['HOME', 'LANG', 'PATH', 'TMPDIR'] False"),
    "connects to a port": (
        TRY + "import socket\nprint(attempt(lambda: socket.create_connection(('127.0.0.1', {port}), 5)))", REFUSED),
    "connects to an abstract socket": (
        TRY + "import socket\nprint(attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0{abstract}')))", REFUSED),
    "enlarges a socket's buffer": (
        TRY + "import socket\none, _ = socket.socketpair()\nprint(attempt(one.setsockopt, 1, socket.SO_SNDBUF, 9))", REFUSED),
    "makes memory outside its limits": (TRY + "import os\nprint(attempt(os.memfd_create, 'x'))", REFUSED),
    "makes namespaces of its own": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.unshare(0x10000000), ctypes.get_errno(), libc.syscall(56, 0x10000011, 0, 0, 0, 0))", "-1 1 -1"),
    "traces its parent": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, os.getppid(), 0, 0), ctypes.get_errno())", "-1 1"),
    "writes outside its folder": (
        TRY + "print([p for p in ('/', '/usr', '/usr/lib', '/lib', '/etc', '/dev') if attempt(open, p + '/x', 'w') "
        "not in ('PermissionError', 'OSError', 'FileNotFoundError')])", "[]"),
    "writes one large file": (
        TRY + "f = open('x', 'wb', 0)\nprint(attempt(lambda: [f.write(b'x' * 10 ** 5) for _ in range(20)]))\n"
        "print(f.tell() <= 2 ** 20)",
        "OSError\nTrue"),
    "finds an empty folder of its own": (
        "import os\nprint(os.listdir('.'), os.getcwd() == os.environ['HOME'])\n"
        "open('x', 'w').write('1')\nprint(open('x').read())",
        "[] True\n1"),
    "closes its output": ("import os, sys\nprint(1, flush=True)\nos.close(1)\nos.close(2)\nsys.stdout.close()", "1"),
    "holds a megabyte of text": (f"x = '{'a' * 10**6}'\nprint(len(x))", "1000000"),
    "keeps only its own files open": (
        "import os\nopen_ones = []\nfor i in range(1000):\n    try: os.fstat(i); open_ones += [i]\n    except OSError: pass\n"
        "print(set(open_ones) <= {0, 1, 2, 3, 4})", "True"),
    "uses threads, processes and loops": (
        "import asyncio, threading, multiprocessing, sqlite3, xml.etree.ElementTree, dataclasses, importlib.resources\n"
        "async def five(): return 5\ndef square(x): return x * x\n"
        "if __name__ == '__main__':\n    with multiprocessing.Pool(2) as pool:\n"
        "        print(asyncio.run(five()), pool.map(square, [2, 3]))",
        "5 [4, 9]"),
    "hashes text the same every time": ("print(hash('tokensqueeze'))", "{hash}"),
}  # fmt: skip
ENDED: dict[str, tuple[str, str]] = {
    "bombs with memory": ("x = []\nwhile True: x.append(bytearray(10 ** 6))", "memory"),
    "asks for all memory at once": ("x = bytearray(10 ** 11)", "memory"),
    "bombs with memory in many processes": (
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        x = bytearray(150 * 2 ** 20)\n"
        "        time.sleep(60)\n"
        "time.sleep(60)", "memory"),
    "prints without end": ("while True: print('x' * 1000)", "output"),
    "complains without end": ("import sys\nwhile True: print('x' * 1000, file=sys.stderr)", "output"),
    "does not parse": ("print(1", "exception: SyntaxError"),
    "has a syntax tree too deep": ("x = " + "-" * 10**6 + "1", "memory"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "crash: SIGSEGV"),
    "imports what is installed": ("import numpy", "exception: ModuleNotFoundError"),
    "names its exception like a novel": ("raise type('x' * 1000, (Exception,), {})()", "exception"),
    "exits with a status": ("import os\nos._exit(3)", "exit"),
}  # fmt: skip
HURRIED_ENDED: dict[str, tuple[str, str]] = {
    "hangs": ("while True: pass", "timeout"),
    "sleeps": ("import time\ntime.sleep(1000)", "timeout"),
    "ignores signals": (
        "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: time.sleep(1)", "timeout"),
}  # fmt: skip
FORKS: dict[str, tuple[str, str]] = {
    "starts more processes than it may": (
        "import os, time\nn = 0\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        "except BlockingIOError: print(n)", "5"),
    "bombs by forking": ("import os\nwhile True: os.fork()", "never"),
    "forks whenever it can": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "never"),
}  # fmt: skip
HIDDEN: dict[str, tuple[str, str]] = {
    "reads a file of its user's": (TRY + "print(attempt(open, '{secret}'))", "FileNotFoundError"),
    "reads it through a link": (
        TRY + "import os\nos.symlink('{secret}', 'link')\nprint(attempt(open, 'link'))", "FileNotFoundError"),
    "lists the project": (TRY + "import os\nprint(attempt(os.listdir, '{project}'))", "FileNotFoundError"),
    "looks at other processes": (TRY + "import os\nprint(attempt(os.listdir, '/proc') in ([], 'FileNotFoundError'))", "True"),
    "kills its parent and everybody": (
        TRY + "import os\nfor p in (os.getppid(), -1, *range(2, 300), {host}):\n"
        "    if p != os.getpid(): attempt(os.kill, p, 9)\n"
        "if os.fork() == 0:\n    os.setsid()\n    os.kill(0, 9)\nos.wait()\n"
        "if os.getpid() == 1: os.kill(0, 9)\nprint('alone')", "alone"),
    "is nobody": ("import os\nprint(os.getuid() != 0 and os.getuid() == os.geteuid())", "True"),
}  # fmt: skip


@dataclass(frozen=True)
class Surroundings:
    """What the programs are after."""

    secret: Path
    listener: socket.socket
    abstract: socket.socket

    def filled(self, text: str) -> str:
        values = {
            "secret": str(self.secret),
            "project": str(ROOT),
            "port": str(self.listener.getsockname()[1]),
            "abstract": cast(bytes, self.abstract.getsockname())[1:].decode(),
            "host": str(os.getpid()),
            "hash": subprocess.run(
                [sys.executable, "-c", "print(hash('tokensqueeze'))"],
                env={"PYTHONHASHSEED": "0"},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            if "{hash}" in text
            else "",
        }
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        return text


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    os.environ["SECRET-TOKEN"] = "SECRET-TOKEN"
    with (
        tempfile.NamedTemporaryFile("w", dir=Path.home()) as secret,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind(f"\0code-sandbox-{os.getpid()}")
        abstract.listen()
        yield Surroundings(Path(secret.name), listener, abstract)
    del os.environ["SECRET-TOKEN"]


@pytest.fixture(scope="module", params=["namespaces", "bubblewrap", "rlimits"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    isolation: Isolation = request.param
    try:
        sandbox = tried_sandbox(isolation, SETTINGS)
    except StageError as error:
        # Limits are to be had everywhere; the others are the machine's to give.
        if isolation == "rlimits":
            raise
        pytest.skip(f"this machine has no {isolation}: {error}")
    with sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def outcomes(sandbox: Sandbox, surroundings: Surroundings) -> dict[str, Outcome]:
    """Run everything at once: most of the time they wait."""
    tried = {**DONE, **ENDED, **HURRIED_ENDED, **FORKS, **(HIDDEN if sandbox.isolation != "rlimits" else {})}

    hurried = {*HURRIED_ENDED, "forks whenever it can"}

    def run(what: str) -> Outcome:
        program, expected = (surroundings.filled(text) for text in tried[what])
        tests = CodeTests(stdin=(CodeTest(input="", output=expected),))
        return try_program(sandbox, Program(program, fenced=True), tests, HURRIED if what in hurried else SETTINGS)

    with ThreadPoolExecutor(6) as pool:
        return dict(zip(tried, pool.map(run, tried), strict=True))


@pytest.mark.parametrize("what", DONE)
def test_a_program_gets_no_further_than_it_may_when_it(outcomes: dict[str, Outcome], what: str):
    assert outcomes[what] == Outcome("correct")


@pytest.mark.parametrize(("what", "cause"), [(what, cause) for what, (_, cause) in (ENDED | HURRIED_ENDED).items()])
def test_a_program_is_incorrect_when_it(outcomes: dict[str, Outcome], what: str, cause: str):
    assert outcomes[what] == Outcome("incorrect", cause)


def test_forks_come_to_an_end(sandbox: Sandbox, outcomes: dict[str, Outcome]):
    found = {what: outcomes[what].cause for what in FORKS}
    if sandbox.isolation == "rlimits" and os.getuid() != 0:
        # There the kernel counts all of a user's processes, and only the keeper those of the program.
        assert found.pop("bombs by forking") in ("processes", "exception: BlockingIOError")
        assert set(found.values()) == {"processes"}
    else:
        assert found == {
            "starts more processes than it may": None,
            "bombs by forking": "exception: BlockingIOError",
            "forks whenever it can": "timeout",
        }


@pytest.mark.parametrize("what", HIDDEN)
def test_behind_namespaces_a_program_finds_nothing_when_it(sandbox: Sandbox, outcomes: dict[str, Outcome], what: str):
    if sandbox.isolation == "rlimits":
        pytest.skip("limits alone hide nothing, and say so")
    assert outcomes[what] == Outcome("correct")


def test_nobody_has_called(outcomes: dict[str, Outcome], surroundings: Surroundings):
    for listener in (surroundings.listener, surroundings.abstract):
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_many_files_fill_no_disk(sandbox: Sandbox):
    program = "for i in range(1000):\n    open(str(i), 'wb').write(b'x' * 10 ** 6)\nimport time\ntime.sleep(30)"
    outcome = try_program(sandbox, Program(program, True), CodeTests(stdin=(CodeTest(input="", output="-"),)), SETTINGS)
    assert outcome.verdict == "incorrect" and outcome.cause in ("exception: OSError", "files")


def test_no_process_and_no_folder_is_left_behind(sandbox: Sandbox, outcomes: dict[str, Outcome]):
    mark = f"left{os.getpid()}"
    leaves = NAME.replace("{mark}", mark) + (
        "import os, time\nopen('file', 'w').write('x')\nos.mkdir('closed')\nopen('closed/file', 'w')\nos.chmod('closed', 0)\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\n"
        "time.sleep(0.1)\nprint(1)"
    )
    hangs = leaves + "\ntime.sleep(1000)"
    tests = CodeTests(stdin=(CodeTest(input="", output="1"),))
    assert try_program(sandbox, Program(leaves, True), tests, SETTINGS) == Outcome("correct")
    assert try_program(sandbox, Program(hangs, True), tests, HURRIED) == Outcome("incorrect", "timeout")
    assert not named(mark)
    assert not list(Path("/tmp").glob(f"{folder_prefix(sandbox)}*"))


def test_a_worker_that_is_killed_takes_its_programs_along(sandbox: Sandbox):
    mark = f"gone{os.getpid()}"
    code = f"""
import sys
from tokensqueeze.code_problem import CodeTest, CodeTests
from tokensqueeze.config import CodeSettings
from tokensqueeze.verifiers.code_tests import tried_sandbox
from tokensqueeze.verifiers.code_trial import try_program
from tokensqueeze.verifiers.program_text import Program
settings = CodeSettings(wall_seconds=60)
program = Program({NAME.replace("{mark}", mark)!r} + 'import time\\ntime.sleep(1000)', True)
tests = CodeTests(stdin=(CodeTest(input='', output=''),))
try_program(tried_sandbox({sandbox.isolation!r}, settings), program, tests, settings)
"""
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_until(lambda: bool(named(mark)))
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    wait_until(lambda: not named(mark))


def test_bubblewrap_is_told_to_share_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bubblewrap, "find", lambda: "/usr/bin/bwrap")
    command = bubblewrap.command(folder_bytes=4096)
    assert {"--unshare-all", "--die-with-parent", "--new-session", "--clearenv"} <= set(command)
    assert command[command.index("--cap-drop") + 1] == "ALL"
    assert command[command.index("/tmp") - 3 :][:4] == ["--size", "4096", "--tmpfs", "/tmp"]
    assert not {"--bind", "--dev-bind", "--share-net", "--proc"} & set(command)
    shown = [command[at + 1] for at, word in enumerate(command) if word == "--ro-bind"]
    assert not [path for path in shown if path in ("/", "/usr", "/home", "/root", "/etc", "/tmp", str(ROOT), str(Path.home()))]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_another_architectures_numbers_first(machine: str):
    program = filter_program(machine)
    assert len(program) % 8 == 0 and len(program) // 8 < 4096
    assert program[:8] == bytes([0x20, 0, 0, 0, 4, 0, 0, 0])  # load the architecture


def named(mark: str) -> list[int]:
    """Return the processes of that name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [int(path.parent.name)] if path.read_text().strip() == mark else []
        except OSError:
            continue
    return found


def folder_prefix(sandbox: Sandbox) -> str:
    """Return how this sandbox' private folders begin, which no other test's do."""
    return f"program-{sandbox._process.pid}-"


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)
