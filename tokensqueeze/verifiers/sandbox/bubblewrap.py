"""Bubblewrap, where it alone may make namespaces: it shows a program the same folders as the jail of our own does."""

import os
import shutil
import sys
from pathlib import Path

from tokensqueeze.verifiers.sandbox.jail import installed_packages, visible_folders

_PACKAGE = Path(__file__).parents[2]
_SHOWN_AT = "/program/tokensqueeze"
_BOOT = "import sys; sys.path.append('/program'); from tokensqueeze.verifiers.sandbox.confined import main; main()"


def find() -> str | None:
    return shutil.which("bwrap", path="/usr/bin:/usr/local/bin:/bin")


def command(folder_bytes: int) -> list[str]:
    """Return bubblewrap's command line, up to and with the interpreter inside."""
    bwrap = find()
    if bwrap is None:
        raise OSError("bwrap: not installed")
    arguments = [
        bwrap,
        "--unshare-user",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    arguments += ["--setenv", "PYTHONHASHSEED", "0"]
    for path in visible_folders():
        arguments += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for path in installed_packages():
        arguments += ["--tmpfs", path]
    interpreter = os.path.realpath(sys.executable)
    arguments += ["--ro-bind", interpreter, interpreter]
    for name in ("__init__.py", "verifiers/__init__.py", "verifiers/sandbox"):
        arguments += ["--ro-bind", str(_PACKAGE / name), f"{_SHOWN_AT}/{name}"]
    arguments += ["--dev", "/dev"]
    for path in ("/dev/shm", "/tmp"):
        arguments += ["--size", str(folder_bytes), "--tmpfs", path]
    arguments += ["--remount-ro", "/dev", "--chdir", "/tmp"]
    return [*arguments, "--remount-ro", "/", "--", interpreter, "-S", "-s", "-P", "-B", "-c", _BOOT]


def execute(folder_bytes: int) -> None:
    """Become bubblewrap."""
    arguments = command(folder_bytes)
    for descriptor in range(3, 5):
        try:
            os.set_inheritable(descriptor, True)
        except OSError:
            continue
    os.execve(arguments[0], arguments, {})
