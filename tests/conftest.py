"""What holds for all tests: no network, no usage reports, one thread per library, a folder for Ray that goes with them."""

import os
import shutil
import tempfile

import pytest

# Libraries read these when they are imported, so they are set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One for every process that runs tests, so that none finds another's Ray; short, because the paths of sockets are.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="tsq-")

LONGEST = ("test_whole_runs.py", "end_to_end", "ray_local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first: of two processes that share the files none shall begin with one when the other is done."""
    items.sort(key=lambda item: [name not in item.path.parts for name in LONGEST])


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
