"""Find the answer that a text puts into `\\boxed{}` or `\\fbox{}`, or into `\\boxed 9`, which TeX allows."""

import re

# A backslash takes the next character with it: \{ and \} are no braces. Boxes come first, because they begin with one.
# Only a number may go without braces: "put it into \boxed form" boxes nothing.
_MARKS = re.compile(
    r"\\(?:boxed|fbox)(?:(?P<box>\s*\{)|\s*(?P<bare>-?[0-9](?:[0-9.,/]*[0-9])?))|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL
)


def last_boxed(text: str) -> str | None:
    """Return what stands in the box that begins last, of those that are closed and not empty, or nothing.

    Linear in the text: a model that loops can open a box ten thousand times.
    """
    best_start, best = -1, None
    starts: list[int | None] = []
    for mark in _MARKS.finditer(text):
        match mark.lastgroup:
            case "box":
                starts.append(mark.end())
            case "bare" if mark.start() > best_start:
                best_start, best = mark.start(), mark["bare"]
            case "open":
                starts.append(None)
            case "close" if starts:
                start = starts.pop()
                if start is not None and start > best_start and (content := text[start : mark.start()].strip()):
                    best_start, best = start, content
    return best
