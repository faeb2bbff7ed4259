"""What Ray's own processes write to standard error: out of the way of what a person reads."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ray_words_to(log: Path) -> Iterator[None]:
    """Send what Ray's own processes write to standard error to a file, so that a terminal shows the run."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
