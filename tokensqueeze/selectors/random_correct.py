"""Keep one correct trace at random: the control that shows what comes from being short, and what from being right."""

import random
from collections.abc import Sequence

from tokensqueeze.fingerprint import seed_of
from tokensqueeze.schema import VerifiedTrace
from tokensqueeze.selectors.shortest_correct import correct_shortest_first


def random_correct(traces: Sequence[VerifiedTrace]) -> list[VerifiedTrace]:
    """Return one of a problem's correct traces, drawn with a seed from the problem's id, or nothing if none is correct."""
    correct = correct_shortest_first(traces)
    return [random.Random(seed_of("random_correct", correct[0].problem_id)).choice(correct)] if correct else []
