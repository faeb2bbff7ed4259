"""What Ray's own processes have to say: out of the way of what a person reads."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ray_words_to(log: Path, *, stdout: bool = False) -> Iterator[None]:
    """Send what Ray's own processes write to standard error, and to standard output if told so, to a file."""
    streams = (sys.stderr, sys.stdout) if stdout else (sys.stderr,)
    numbers = (2, 1) if stdout else (2,)
    for stream in streams:
        stream.flush()
    terminal = [os.dup(number) for number in numbers]
    with log.open("ab") as file:
        for number in numbers:
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for stream, number, kept in zip(streams, numbers, terminal, strict=True):
                stream.flush()
                os.dup2(kept, number)
                os.close(kept)
