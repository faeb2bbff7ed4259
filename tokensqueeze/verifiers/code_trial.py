"""One program and its tests, in a sandbox: how it came out.

The expected answers never come near the program. Prints and return values are compared here; asserts run in a sandbox of
their own that asks the program's for values. What a program does, such as taking too long, is its own fault: `incorrect`.
What fails on this side is `unverifiable`.

Causes of `incorrect`: `wrong_answer: test N`, `exception: NAME`, `exit` (it ended before its tests did), `crash: SIGNAL`, and
what it used up: `timeout`, `memory`, `output`, `processes`, `files`. Of `unverifiable`: `bad_tests: NAME`,
`unreadable_tests`, `sandbox`.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from signal import Signals
from typing import Any

from tokensqueeze.code_problem import CodeTests
from tokensqueeze.config import CodeSettings
from tokensqueeze.schema import Verdict
from tokensqueeze.verifiers.printed_output import same_output
from tokensqueeze.verifiers.program_text import Program
from tokensqueeze.verifiers.sandbox.host import Run, Sandbox, Watching
from tokensqueeze.verifiers.sandbox.limits import Limits

_GRACE_SECONDS = 30.0
"""Over the time that a run has: its keeper ends it, and speaks up later on a busy machine."""
_CHECKER_MEMORY_BYTES = 2**31
_CAUSE = re.compile(r"[a-z_]+(: \w{1,60})?")


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    cause: str | None = None


class SandboxFailed(Exception):
    """The sandbox could not be closed, or its keeper died: no program's doing."""


def try_program(sandbox: Sandbox, program: Program, tests: CodeTests, settings: CodeSettings) -> Outcome:
    """Run a program's tests until one fails. Raises `SandboxFailed` for what is no program's doing."""
    if tests.stdin:
        return _try_inputs(sandbox, program, tests, settings)
    if tests.functional:
        return _try_calls(sandbox, program, tests, settings)
    return _try_asserts(sandbox, program, tests, settings)


def _try_inputs(sandbox: Sandbox, program: Program, tests: CodeTests, settings: CodeSettings) -> Outcome:
    deadline = time.monotonic() + settings.program_seconds
    job = _job("stdin", program, tests)
    for number, test in enumerate(tests.stdin, 1):
        left = deadline - time.monotonic()
        if left <= 0:
            return Outcome("incorrect", "timeout")
        limits = _limits(settings)
        limits = replace(limits, wall_seconds=min(left, limits.wall_seconds))
        with _input(test.input) as stdin:
            run = sandbox.start(job, limits, stdin=stdin)
            with Watching([run], settings.output_kib * 1024) as watching:
                _until_ended(watching, run, limits)
        if cause := _own_end(run):
            return Outcome("incorrect", cause)
        if not same_output(test.output, run.stdout.decode(errors="replace")):
            return Outcome("incorrect", f"wrong_answer: test {number}")
    return Outcome("correct")


def _try_calls(sandbox: Sandbox, program: Program, tests: CodeTests, settings: CodeSettings) -> Outcome:
    limits = replace(_limits(settings), wall_seconds=settings.program_seconds, cpu_seconds=settings.program_seconds)
    try:
        expected = [json.loads(test.output) for test in tests.functional]
    except (ValueError, RecursionError) as error:
        return Outcome("unverifiable", f"bad_tests: {type(error).__name__}")
    job = _job("functional", program, tests) | {"fn_name": tests.fn_name, "inputs": [test.input for test in tests.functional]}
    with _input("") as stdin:
        run = sandbox.start(job, limits, stdin=stdin)
    with Watching([run], settings.output_kib * 1024) as watching:
        try:
            watching.until(lambda: run.ready or run.ended, limits.wall_seconds + _GRACE_SECONDS)
            for number, value in enumerate(expected, 1):
                watching.until(lambda number=number: len(run.messages) >= number or run.ended, settings.wall_seconds)
                if len(run.messages) < number:
                    return Outcome("incorrect", _own_end(run) or "exit")
                message = run.messages[number - 1]
                if not isinstance(message, dict) or "value" not in message:
                    return Outcome("incorrect", _told(message))
                if not _returned(value, message["value"]):
                    return Outcome("incorrect", f"wrong_answer: test {number}")
        except TimeoutError:
            if not run.ready:
                raise SandboxFailed("no word from it") from None
            return Outcome("incorrect", "timeout")
    return Outcome("correct")


def _try_asserts(sandbox: Sandbox, program: Program, tests: CodeTests, settings: CodeSettings) -> Outcome:
    limits = _limits(settings)
    checkers_limits = replace(limits, memory_bytes=max(limits.memory_bytes, _CHECKER_MEMORY_BYTES))
    programs_end, asserts_end = socket.socketpair()
    with _input("") as stdin, programs_end, asserts_end:
        run = sandbox.start(_job("program", program, tests), limits, stdin=stdin, link=programs_end)
        try:
            checker = sandbox.start(_job("asserts", program, tests), checkers_limits, stdin=stdin, link=asserts_end)
        except BaseException:
            run.close()
            raise
    with Watching([run, checker], settings.output_kib * 1024) as watching:
        _until(watching, lambda: bool(checker.messages) or checker.ended or run.ended, limits)
        if run.ended and not checker.messages:
            # It may have been told of the end before it is heard of here.
            _until(watching, lambda: bool(checker.messages) or checker.ended, limits)
        told = checker.messages[0] if checker.messages else None
        if told and "gone" in told:
            _until_ended(watching, run, limits)
    if unready := [each for each in (run, checker) if not each.ready]:
        raise _failure(max(unready, key=lambda each: len(each.last_words)))
    if {"died": "no_program"} in run.messages:
        return Outcome("no_answer", "no_program")
    if told is None:
        if (run.report or {}).get("cause") in ("timeout", "memory") or run.stopped_for == "output":
            return Outcome("incorrect", _own_end(run))
        if (checker.report or {}).get("cause") == "timeout":
            return Outcome("incorrect", "timeout")
        raise SandboxFailed(f"the asserts' own process: {checker.report}")
    if "bad_tests" in told:
        return Outcome("unverifiable", f"bad_tests: {told['bad_tests']}")
    if "gone" in told:
        return Outcome("incorrect", _own_end(run) or "exit")
    if told["failed"] is None:
        return Outcome("correct")
    cause = _clean(told["failed"])
    return Outcome("incorrect", f"wrong_answer: test {max(1, told['calls'])}" if cause == "wrong_answer" else cause)


def _job(kind: str, program: Program, tests: CodeTests) -> dict[str, Any]:
    common = {"kind": kind, "prefix": tests.prefix, "entry_point": tests.entry_point}
    # Neither has what is the other's.
    return common | ({"asserts": tests.asserts} if kind == "asserts" else {"program": program.text, "fenced": program.fenced})


def _limits(settings: CodeSettings) -> Limits:
    return Limits(
        wall_seconds=settings.wall_seconds,
        cpu_seconds=settings.cpu_seconds,
        memory_bytes=settings.memory_mib * 2**20,
        processes=settings.max_processes,
        file_bytes=settings.file_kib * 1024,
    )


@contextmanager
def _input(text: str) -> Iterator[int]:
    """Give a standard input with a text in it."""
    descriptor = os.memfd_create("input") if text else os.open(os.devnull, os.O_RDWR)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogatepass", closefd=False) as file:
            file.write(text)
        # Opened anew: the program may read its input, not change it.
        read_only = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        try:
            yield read_only
        finally:
            os.close(read_only)
    finally:
        os.close(descriptor)


def _until_ended(watching: Watching, run: Run, limits: Limits) -> None:
    _until(watching, lambda: run.ended, limits)


def _until(watching: Watching, happened: Any, limits: Limits) -> None:
    try:
        watching.until(happened, limits.wall_seconds + _GRACE_SECONDS)
    except TimeoutError as error:
        raise SandboxFailed(str(error)) from None


def _own_end(run: Run) -> str | None:
    """Return why a run's end is no good one, or nothing. Raises `SandboxFailed` if that is not the program's doing."""
    report = run.report
    if not run.ready or report is None or "failed" in report:
        raise _failure(run)
    if run.stopped_for == "output":
        return "output"
    if cause := report["cause"]:
        return cause
    if run.messages:
        return _told(run.messages[0])
    if report["exit_code"] < 0:
        return f"crash: {Signals(-report['exit_code']).name}"
    return "exit" if report["exit_code"] else None


def _failure(run: Run) -> SandboxFailed:
    words = run.last_words.decode(errors="replace").strip()
    report = run.report or {}
    return SandboxFailed(report.get("failed") or words.rpartition("\n")[2] or f"ended: {report or 'without a word'}")


def _told(message: Any) -> str:
    """Return what the program's own process says that it died of."""
    return _clean(message.get("died") if isinstance(message, dict) else None)


def _clean(cause: Any) -> str:
    # It comes from where the program is, which may write anything.
    return cause if isinstance(cause, str) and _CAUSE.fullmatch(cause) else "exception"


def _returned(expected: Any, coded: Any) -> bool:
    """Return whether a function has returned what it should have. A tuple is as good as a list, as LiveCodeBench has it."""
    if isinstance(coded, dict) and list(coded) == ["tuple"]:
        coded = coded["tuple"]
    return _same(expected, coded)


def _same(expected: Any, coded: Any) -> bool:
    """Compare JSON with a value as `plain_values` encodes it, without building what a program may have made to be slow."""
    if isinstance(coded, list):
        same_length = isinstance(expected, list) and len(expected) == len(coded)
        return same_length and all(map(_same, expected, coded))
    if not isinstance(coded, dict):
        return expected == coded
    match coded:
        case {"dict": [*pairs]} if isinstance(expected, dict) and len(pairs) == len(expected):
            found = {pair[0]: pair[1] for pair in pairs if isinstance(pair, list) and isinstance(pair[0], str)}
            return found.keys() == expected.keys() and all(_same(expected[key], value) for key, value in found.items())
        case {"int": str(digits)} if isinstance(expected, int):
            return hex(expected) == digits
    return False
