"""GSM8K's own format: the worked solution and the answer are one text, and the answer follows `####`."""

MARKER = "####"


def final_answer(solution: str) -> str | None:
    """Return what follows the last `####`, without thousands separators and dollar signs, or nothing."""
    _, marker, answer = solution.rpartition(MARKER)
    answer = answer.replace(",", "").replace("$", "").strip()
    return answer if marker and answer else None
