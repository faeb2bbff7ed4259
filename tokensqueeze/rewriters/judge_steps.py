"""Let the rules of many steps run side by side, and score together what they ask for.

Whatever is shared or left out here changes no choice: a candidate's verdict depends on its trace, its step and the bound
alone, and every rule hears the verdicts it asked for, in its own order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tokensqueeze.rewriters.choice import Choice, Judged, Rule
from tokensqueeze.schema import Candidate
from tokensqueeze.scoring.bounds import Bound
from tokensqueeze.scoring.branches import ReadTrace
from tokensqueeze.scoring.window_kl import Window, WindowScorer
from tokensqueeze.traces.anatomy import Span

_LIVE_TOKENS = 16_384
"""Tokens of the traces that are held at a time."""


@dataclass(frozen=True)
class TraceSteps:
    """A trace, and a rule for each of its steps that may be rewritten; spans count from the completion's first token."""

    prompt_token_ids: Sequence[int]
    completion_token_ids: Sequence[int]
    steps: Sequence[tuple[Span, Rule]]


@dataclass(frozen=True)
class JudgedStep:
    choice: Choice
    rest: Judged | None = None
    """What the bound says of the kept candidate over the whole rest of the trace, where that was asked for and fits."""


@dataclass(frozen=True)
class Judging:
    """How candidates are judged."""

    bound: Bound
    window_tokens: int
    context_length: int
    """A candidate that would push its window beyond this fails."""
    check_rest: bool = False
    """Judge what is kept once more over the whole rest of its trace."""


def judge_steps(scorer: WindowScorer, traces: Iterable[TraceSteps], judging: Judging) -> list[list[JudgedStep]]:
    """Return what becomes of every step of every trace."""
    waiting = deque(traces)
    opened: list[_OpenTrace] = []
    live: list[_OpenTrace] = []
    while waiting or live:
        while waiting and (not live or sum(trace.num_tokens for trace in live) < _LIVE_TOKENS):
            live.append(_OpenTrace(scorer, waiting.popleft(), judging))
            opened.append(live[-1])
        for window in scorer.advance():
            for trace in live:
                trace.hear(window)
        live = [trace for trace in live if trace.busy]
    return [[step.judged() for step in trace.steps] for trace in opened]


class _OpenTrace:
    """A trace whose steps are being judged."""

    def __init__(self, scorer: WindowScorer, trace: TraceSteps, judging: Judging):
        self._scorer, self._judging = scorer, judging
        token_ids = [*trace.prompt_token_ids, *trace.completion_token_ids]
        self.num_tokens = len(token_ids)
        # Its keys and values go when the last window does that looks at them.
        read = scorer.read_trace(token_ids, with_entropy=judging.bound.scale == "entropy") if trace.steps else None
        self._asked: dict[Window, tuple[_Step, int]] = {}
        self.steps: list[_Step] = []
        for span, rule in trace.steps:
            assert read is not None
            offset = len(trace.prompt_token_ids)
            self.steps.append(_Step(Span(offset + span.start, offset + span.end), rule))
            self._ask(read, self.steps[-1])

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    def hear(self, window: Window) -> None:
        """Pass a finished window's verdict on to the step that asked for it, and have scored what it wants next."""
        if window not in self._asked:
            return
        step, index = self._asked.pop(window)
        verdict = Judged(self._judging.bound.reduced(window.kl, window.num_tokens), passes=not window.failed)
        if step.choice is not None:
            step.rest = verdict if window.fits else None
            return
        step.hear(index, verdict)
        if step.complete:
            step.go_on()
            self._ask(window.trace, step)

    def _ask(self, read: ReadTrace, step: "_Step") -> None:
        for index, candidate in enumerate(step.wanted):
            self._add(self._window(read, step.span, candidate, self._judging.window_tokens), step, index)
        kept = step.choice.candidate if step.choice else None
        if self._judging.check_rest and kept:
            self._add(self._window(read, step.span, kept, self.num_tokens, read_to_the_end=True), step, 0)

    def _add(self, window: Window, step: "_Step", index: int) -> None:
        self._asked[window] = (step, index)
        self._scorer.add(window)

    def _window(
        self, read: ReadTrace, span: Span, candidate: Candidate, window_tokens: int, *, read_to_the_end: bool = False
    ) -> Window:
        num_tokens = min(window_tokens, self.num_tokens - span.end)
        return Window(
            read,
            span,
            candidate.token_ids,
            num_tokens,
            limit=self._judging.bound.limit(read, span, num_tokens),
            fits=span.start + len(candidate.token_ids) + num_tokens <= self._judging.context_length,
            read_to_the_end=read_to_the_end,
        )


class _Step:
    """One step's rule, what it wants judged, and what it has heard so far."""

    def __init__(self, span: Span, rule: Rule):
        self.span, self._rule = span, rule
        self.choice: Choice | None = None
        self.rest: Judged | None = None
        self.wanted: Sequence[Candidate] = ()
        self._heard: dict[int, Judged] = {}
        self._advance(lambda: next(rule))

    @property
    def complete(self) -> bool:
        return len(self._heard) == len(self.wanted)

    def hear(self, index: int, verdict: Judged) -> None:
        self._heard[index] = verdict

    def go_on(self) -> None:
        verdicts = [self._heard[index] for index in range(len(self.wanted))]
        self._heard = {}
        self._advance(lambda: self._rule.send(verdicts))

    def judged(self) -> JudgedStep:
        assert self.choice is not None
        return JudgedStep(self.choice, self.rest)

    def _advance(self, ask: Callable[[], Sequence[Candidate]]) -> None:
        try:
            self.wanted = ask()
        except StopIteration as end:
            self.wanted, self.choice = (), end.value
        assert self.wanted or self.choice, "a rule asks for at least one candidate at a time"
