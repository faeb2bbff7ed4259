"""Does a completion's program pass its problem's tests? It runs in a sandbox, or not at all."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import get_args

from tokensqueeze.code_problem import CodeTests
from tokensqueeze.config import CodeSettings
from tokensqueeze.errors import ProblemsError, SettingsError, StageError
from tokensqueeze.verifiers.code_trial import Outcome, SandboxFailed, try_program
from tokensqueeze.verifiers.program_text import Program, extract_program
from tokensqueeze.verifiers.sandbox.host import Sandbox
from tokensqueeze.verifiers.sandbox.keeper import Isolation
from tokensqueeze.verifiers.verdict import Answered, Judgement

_ATTEMPTS = 2
_NAMESPACES: tuple[Isolation, ...] = ("namespaces", "bubblewrap")
"""The kinds that `min_isolation = "namespaces"` allows."""
_PROBE_TESTS = CodeTests(asserts="assert answer() == 42", entry_point="answer")
_PROBE = Program("def answer():\n    return 42\n", fenced=True)


class CodeVerifier(AbstractContextManager["CodeVerifier"]):
    """Judges completions that hold a program, `processes` at a time.

    Raises `SettingsError` where programs can't be isolated as `settings.min_isolation` asks.
    """

    def __init__(self, settings: CodeSettings, *, think_end: str, processes: int = 1) -> None:
        self._settings = settings
        self._think_end = think_end
        self._sandbox = open_sandbox(settings)
        self._pool = ThreadPoolExecutor(processes, thread_name_prefix="code-verifier")

    @property
    def isolation(self) -> Isolation:
        return self._sandbox.isolation

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._sandbox.close()

    def judge(self, items: Sequence[Answered]) -> list[Judgement]:
        """Return one judgement per item, in order. Equal programs for equal tests run once."""
        tests = {gold_answer: _read(gold_answer) for gold_answer in {item.gold_answer for item in items}}
        programs = [self._program(item, tests[item.gold_answer]) for item in items]
        running = {
            (item.gold_answer, program): self._pool.submit(self._try, program, tests_of)
            for item, program in zip(items, programs, strict=True)
            if program and (tests_of := tests[item.gold_answer])
        }
        return [
            self._judgement(item, program, running.get((item.gold_answer, program)) if program else None)
            for item, program in zip(items, programs, strict=True)
        ]

    def _program(self, item: Answered, tests: CodeTests | None) -> Program | None:
        if item.finish_reason == "length":
            return None
        return extract_program(item.text, self._think_end, whole_text=bool(tests and tests.prefix and tests.entry_point))

    def _judgement(self, item: Answered, program: Program | None, outcome: Future[Outcome] | None) -> Judgement:
        if item.finish_reason == "length":
            return Judgement("incorrect", None, "truncated")
        if program is None:
            return Judgement("no_answer", None, "no_program")
        if outcome is None:
            return Judgement("unverifiable", program.text, "unreadable_tests")
        verdict, cause = outcome.result().verdict, outcome.result().cause
        return Judgement(verdict, None if verdict == "no_answer" else program.text, cause, isolation=self.isolation)

    def _try(self, program: Program, tests: CodeTests) -> Outcome:
        for _ in range(_ATTEMPTS):
            with suppress(SandboxFailed, StageError, OSError):
                return try_program(self._sandbox, program, tests, self._settings)
        return Outcome("unverifiable", "sandbox")


def open_sandbox(settings: CodeSettings) -> Sandbox:
    """Return the strongest sandbox at hand. Raises `SettingsError` if it is weaker than the settings ask for.

    Namespaces of our own come before bubblewrap's: they take a fifth of the time, and bind root too.
    """
    reasons = []
    for isolation in get_args(Isolation) if settings.min_isolation == "rlimits" else _NAMESPACES:
        try:
            return tried_sandbox(isolation, settings)
        except StageError as error:
            reasons.append(f"{isolation}: {error}")
    raise SettingsError(
        f"verifier.code.min_isolation: {settings.min_isolation!r} can't be had here ({'; '.join(reasons)}); allow user "
        "namespaces (sysctl user.max_user_namespaces; a container's seccomp profile), or install bubblewrap, or set it to "
        '"rlimits" and let programs read and kill what this user may'
    )


def tried_sandbox(isolation: Isolation, settings: CodeSettings) -> Sandbox:
    """Return a sandbox that has run a program. Raises `StageError` where it can't."""
    sandbox = Sandbox(isolation)
    try:
        outcome = try_program(sandbox, _PROBE, _PROBE_TESTS, settings)
        if outcome.verdict != "correct":
            raise StageError(f"a program that is right came out as {outcome.verdict}: {outcome.cause}")
    except SandboxFailed as error:
        sandbox.close()
        raise StageError(str(error)) from None
    except BaseException:
        sandbox.close()
        raise
    return sandbox


def _read(gold_answer: str) -> CodeTests | None:
    try:
        return CodeTests.from_json(gold_answer)
    except ProblemsError:
        return None
