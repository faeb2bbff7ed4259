"""Keep the shortest correct trace of a length at which the model is dependable (not in the paper)."""

from collections.abc import Sequence

from tokensqueeze.schema import VerifiedTrace
from tokensqueeze.selectors.shortest_correct import correct_shortest_first


def reliable_shortest(traces: Sequence[VerifiedTrace], *, min_reliability: float) -> list[VerifiedTrace]:
    """Return the shortest correct trace such that enough of the samples no longer than it are correct.

    Of n such samples, r right, the share is (r + ½) / (n + 1). If it is enough for none, the correct trace with the
    highest share is kept; ties go to the shorter.
    """

    def share(trace: VerifiedTrace) -> float:
        no_longer = [other for other in traces if other.num_tokens <= trace.num_tokens]
        return (sum(other.verdict == "correct" for other in no_longer) + 0.5) / (len(no_longer) + 1)

    correct = correct_shortest_first(traces)
    dependable = [trace for trace in correct if share(trace) >= min_reliability]
    return dependable[:1] or sorted(correct, key=lambda trace: -share(trace))[:1]
