"""The verdict in words: what the squeezed model's evaluation says against the base's, and no more than it says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokensqueeze.reporting.wording import counted, percent, points_with_error

Tone = Literal["good", "bad", "open"]

# A change that chance alone gives more often than this is not called one.
_NOTABLE = 0.05
# (shorter, better), each 1, 0 or −1.
_VERDICTS: Mapping[tuple[int, int], tuple[str, Tone]] = {
    (1, 1): ("Shorter, and more often right.", "good"),
    (1, 0): ("Shorter, with no change in accuracy that {problems} could show.", "good"),
    (1, -1): ("Shorter, but less often right: the saving costs accuracy.", "bad"),
    (0, 1): ("More often right, with no clear change in length.", "open"),
    (0, 0): ("No change that {problems} could show.", "open"),
    (0, -1): ("Less often right, and no clear change in length.", "bad"),
    (-1, 1): ("More often right, but longer.", "open"),
    (-1, 0): ("Longer, with no change in accuracy that {problems} could show.", "bad"),
    (-1, -1): ("Longer, and less often right.", "bad"),
}


@dataclass(frozen=True)
class Headline:
    """`figure` is the result in two numbers, `verdict` one sentence, `tone` how the page may colour it."""

    figure: str
    verdict: str
    tone: Tone
    decoding: str


def headline(evaluation: Mapping[str, Any]) -> Headline:
    """Sum up evaluation.json; by sampled answers where there are any, since greedy decoding hides differences."""
    decoding = "sampled" if "sampled" in evaluation["change"] else "greedy"
    change = evaluation["change"][decoding]
    ratio, gain = change["length_ratio"], change["accuracy"]
    figure = f"{percent(ratio, 0)} of the tokens, {points_with_error(gain, change['accuracy_se'])}"
    problems = counted(evaluation["base"][decoding]["num_problems"], "problem")
    shorter, better = _direction(1 - ratio, change["length_p"]), _direction(gain, change["accuracy_p"])
    if shorter is None or better is None:
        return Headline(
            figure, f"{problems} can't tell a change from chance: evaluate on more before judging.", "open", decoding
        )
    verdict, tone = _VERDICTS[shorter, better]
    return Headline(figure, verdict.format(problems=problems), tone, decoding)


def _direction(change: float, p: float | None) -> int | None:
    """Return −1, 0 or 1 for a fall, no notable change or a rise; nothing where there is no test."""
    if p is None:
        return None
    if p > _NOTABLE:
        return 0
    return 1 if change > 0 else -1
