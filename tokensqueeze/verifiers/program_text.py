"""Find the program in a completion: the last fenced block of Python behind the thinking."""

import textwrap
from dataclasses import dataclass

_PYTHON = {"python", "py", "python3", "python2"}


@dataclass(frozen=True)
class Program:
    text: str
    fenced: bool
    """Marked as a program; else it is only text where one was asked for."""


def extract_program(completion: str, think_end: str, *, whole_text: bool = False) -> Program | None:
    """Return the last block marked as Python, else the last block, else with `whole_text` all of the answer, or nothing.

    A completion that never ends its thinking is searched whole; an unclosed block is none. Linear in the text.
    """
    answer = completion.rpartition(think_end)[2]
    blocks = fenced_blocks(answer)
    python = [text for language, text in blocks if language in _PYTHON]
    for text in (*python[-1:], *[text for _, text in blocks[-1:]]):
        return Program(text, fenced=True)
    if whole_text and answer.strip():
        return Program(answer.strip("\n") + "\n", fenced=False)
    return None


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Return language and contents of each block between lines of three backticks or more, unindented."""
    blocks: list[tuple[str, str]] = []
    fence, language = "", ""
    lines: list[str] = []
    for line in text.split("\n"):
        bare = line.strip()
        ticks = len(bare) - len(bare.lstrip("`"))
        if fence:
            if ticks >= len(fence) and ticks == len(bare):
                blocks.append((language, textwrap.dedent("\n".join(lines)) + "\n"))
                fence = ""
            else:
                lines.append(line)
        elif ticks >= 3 and "`" not in bare[ticks:]:
            words = bare[ticks:].split()
            fence, language, lines = bare[:ticks], words[0].lower() if words else "", []
    return blocks
