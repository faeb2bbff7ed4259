"""The MATH data set's own format (Hendrycks et al. 2021): the answer is the last box of the worked solution.

Some of its solutions box a bare token, `\\boxed 9`, which TeX allows.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[^\s${}\\]+))")
_BRACE = re.compile(r"\\.|([{}])", re.DOTALL)


def boxed_answer(solution: str) -> str | None:
    """Return the contents of the last box, or nothing if it is empty or not closed."""
    boxes = list(_BOX.finditer(solution))
    if not boxes:
        return None
    if boxes[-1]["bare"]:
        return boxes[-1]["bare"].rstrip(".,;:") or None
    start, depth = boxes[-1].end(), 1
    for mark in _BRACE.finditer(solution, start):
        # An escaped brace is a character of the answer: the set \{1,2\}.
        depth += {"{": 1, "}": -1}.get(mark[1], 0)
        if depth == 0:
            return solution[start : mark.start()].strip() or None
    return None
