"""Where a thinking budget cuts a completion: at the budget's last token, if it is still thinking there.

Budget forcing (Muennighoff et al. 2025, arXiv 2501.19393): behind the cut the thinking is closed by a given text, and the
model goes on with its answer.
"""

from collections.abc import Sequence
from itertools import accumulate


def cut_at_budget(token_texts: Sequence[str], think_end: str, budget: int) -> int | None:
    """Return how many tokens stay, or nothing where thinking took no more than `budget` tokens.

    `token_texts` is each token decoded by itself. The tag that ends thinking does not count against the budget; a completion
    without it is all thinking.
    """
    position = "".join(token_texts).rfind(think_end)
    thought = len(token_texts) if position < 0 else sum(end <= position for end in accumulate(map(len, token_texts)))
    return budget if thought > budget else None
