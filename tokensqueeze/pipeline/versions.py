"""Which packages a result was made with."""

import platform
from importlib.metadata import PackageNotFoundError, version

from tokensqueeze import __version__

_PACKAGES = ("ray", "torch", "transformers", "deepspeed", "vllm", "pyarrow", "math-verify")


def versions() -> dict[str, str]:
    found = {"tokensqueeze": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
