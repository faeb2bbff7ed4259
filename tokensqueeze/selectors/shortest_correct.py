"""Keep the shortest correct trace: the simplest rule, and the paper's ablation."""

from collections.abc import Sequence

from tokensqueeze.schema import VerifiedTrace


def shortest_correct(traces: Sequence[VerifiedTrace]) -> list[VerifiedTrace]:
    """Return the correct trace with the fewest tokens, or nothing if none is correct."""
    return correct_shortest_first(traces)[:1]


def correct_shortest_first(traces: Sequence[VerifiedTrace]) -> list[VerifiedTrace]:
    """Return the correct traces by token length; ties go to the earlier sample."""
    correct = [trace for trace in traces if trace.verdict == "correct"]
    return sorted(correct, key=lambda trace: (trace.num_tokens, trace.sample_index))
