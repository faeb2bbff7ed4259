"""What happens in a sandbox, once it is closed: run a program, call its function, or run the asserts against another one.

Nothing here is secret from the program but what is in another process: the expected answers, and the asserts.
"""

import ast
import atexit
import builtins
import os
import sys
import textwrap
from _sitebuiltins import Quitter
from collections.abc import Mapping
from types import CodeType, ModuleType
from typing import Any

from tokensqueeze.verifiers.sandbox.calls import CAUSE, Asking, Calls, CantPass, RemoteError, cause_of
from tokensqueeze.verifiers.sandbox.channel import Channel, HungUp
from tokensqueeze.verifiers.sandbox.plain_values import encode

JOB, LINK = 3, 4
"""File descriptors: the job and its outcome; to or from the process with the asserts."""


def run_job(job: Mapping[str, Any], host: Channel) -> None:
    """Do a job and end the process."""
    # Without `site`, which would look for installed packages, these are missing.
    builtins.exit, builtins.quit = Quitter("exit", "Ctrl-D"), Quitter("quit", "Ctrl-D")
    sys.argv = ["program.py"]
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    match job["kind"]:
        case "stdin":
            _run_main(job, host)
        case "functional":
            _call_function(job, host)
        case "program":
            _offer_names(job, host)
        case "asserts":
            _check(job, host)
    os._exit(0)


def _run_main(job: Mapping[str, Any], host: Channel) -> None:
    """Run a program as a script, which its end ends: threads are waited for, registered functions called."""
    try:
        _execute(_module("__main__"), assemble(job))
    except SystemExit:
        pass  # What it has printed by then counts.
    except BaseException as error:
        host.send({"died": cause_of(error)})
    _end_as_python_does(host)


def _end_as_python_does(host: Channel) -> None:
    try:
        if threading := sys.modules.get("threading"):
            threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except ValueError:
        pass  # It has closed its output.
    except BaseException as error:
        host.send({"died": cause_of(error)})


def _call_function(job: Mapping[str, Any], host: Channel) -> None:
    """Run a program, then its function for one test after the other; send what it returns."""
    import json

    def refuse(value: Any) -> Any:
        raise TypeError(type(value).__name__)

    try:
        module = _module("program")
        _execute(module, assemble(job))
        owner = module.Solution() if hasattr(module, "Solution") else module
        function = getattr(owner, job["fn_name"])
        for arguments in job["inputs"]:
            result = function(*[json.loads(line) for line in arguments.split("\n") if line.strip()])
            host.send({"value": encode(result, refuse)})
    except HungUp:
        return  # A wrong answer is enough.
    except BaseException as error:
        host.send({"died": cause_of(error)})


def _offer_names(job: Mapping[str, Any], host: Channel) -> None:
    """Run a program and let the asserts, in another process, call what it defines."""
    link = Channel(LINK)
    try:
        module = _module("program")
        _execute(module, assemble(job))
        calls = Calls(link)
        calls.offer(vars(module))
    except NoProgram:
        host.send({"died": "no_program"})
        link.send({"died": "no_program"})
    except BaseException as error:
        link.send({"died": cause_of(error)})
    else:
        calls.serve()


def _check(job: Mapping[str, Any], host: Channel) -> None:
    """Run the asserts against the program at the other end of the link; tell the host how they went."""
    link = Channel(LINK)
    asking = Asking(link)
    module = _module("tests")
    try:
        _execute(module, [compile(job["prefix"], "prefix.py", "exec", dont_inherit=True)])
        asserts = compile(job["asserts"], "tests.py", "exec", dont_inherit=True)
    except Exception as error:
        host.send({"bad_tests": type(error).__name__})
        return
    try:
        offered = asking.offered()
        # The asserts judge by what Python and the problem give, not by what the program calls `abs` or `math`; the function
        # that is asked for is the program's, whatever its name.
        vars(module).pop(job["entry_point"], None)
        own = {*vars(module), *dir(builtins), *sys.stdlib_module_names} - {job["entry_point"]}
        vars(module).update(
            {name: value for name, value in offered.items() if name not in own or isinstance(value, ModuleType)}
        )
        if asking.died is None:
            _execute(module, [asserts])
    except HungUp:
        host.send({"gone": True})
    except CantPass as error:
        host.send({"bad_tests": type(error).__name__})
    except BaseException as error:
        host.send({"failed": _failure(error), "calls": asking.calls})
    else:
        # Asserts that expect an exception may have caught that the program is gone.
        host.send({"gone": True} if link.hung_up else {"failed": asking.died, "calls": asking.calls})


def _failure(error: BaseException) -> str:
    if cause := getattr(error, CAUSE, None):
        return cause
    if isinstance(error, RemoteError):
        return str(error)
    return "wrong_answer" if isinstance(error, AssertionError) else cause_of(error)


class NoProgram(Exception):
    """Text that was only taken for a program for want of a fenced one doesn't read as one."""


def assemble(job: Mapping[str, Any]) -> list[CodeType]:
    """Return what to run: a program behind its prefix, or the prefix's function with the program for a body.

    Raises what compiling raises; `NoProgram` for text that was not marked as a program.
    """
    prefix, program, entry_point = job["prefix"], job["program"], job["entry_point"]
    choices = [(prefix, program)]
    if entry_point and not defines(program, entry_point):
        choices = [("", prefix + program), ("", prefix + textwrap.indent(program, "    ")), *choices]
    failure: BaseException | None = None
    for choice in choices:
        try:
            # Apart from each other: `from __future__` must stand first in its own.
            return [compile(part, "program.py", "exec", dont_inherit=True) for part in choice if part]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            failure = failure or error
    if not job["fenced"]:
        raise NoProgram
    raise failure or SyntaxError


def defines(program: str, name: str) -> bool:
    """Return whether a program binds a name at its top level; one that doesn't parse binds none."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(
        getattr(node, "name", None) == name
        or (isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets))
        for node in tree.body
    )


def _module(name: str) -> ModuleType:
    """Return a new module that is found by its name, as dataclasses and pickle look for it."""
    module = ModuleType(name)
    sys.modules[name] = module
    return module


def _execute(module: ModuleType, parts: list[CodeType]) -> None:
    for part in parts:
        exec(part, vars(module))
