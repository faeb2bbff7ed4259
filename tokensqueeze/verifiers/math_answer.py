"""Is a completion's answer the gold answer? Text and numbers are compared here, the rest by Math-Verify.

Math-Verify works in child processes that are killed when they exceed their time. What could not be judged is
`unverifiable` with its cause, never `incorrect`.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import accumulate, islice
from multiprocessing.connection import wait

from tokensqueeze.config import AnswerForm
from tokensqueeze.verifiers.answer_forms import extract_answer, no_answer_cause
from tokensqueeze.verifiers.judge_process import JudgeProcess, Outcome, Question
from tokensqueeze.verifiers.verdict import Answered, Judgement
from tokensqueeze.verifiers.written_math import TOO_LONG, is_integer, readable, same_plainly, without_surrogates

EQUIVALENCE = "tokensqueeze.verifiers.math_equivalence"

_START_ATTEMPTS = 3
_BATCH, _BATCH_CHARACTERS = 8, 16_000
"""What a child is handed at a time, so that it need not wait for the parent. It is far less than a socket takes: a parent
that sends never waits for a child that hangs."""


class MathVerifier(AbstractContextManager["MathVerifier"]):
    """Judges completions, with up to `processes` children; they start with the first answer that needs one.

    `equivalence` names the module a child compares with: `equivalent(gold_answer, answer) -> bool` and `warm_up()`.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float,
        think_end: str,
        answer_forms: Sequence[AnswerForm] = ("boxed",),
        processes: int = 1,
        equivalence: str = EQUIVALENCE,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._think_end = think_end
        self._answer_forms = answer_forms
        self._processes = processes
        self._equivalence = equivalence
        self._children: list[JudgeProcess] = []

    def __exit__(self, *exception: object) -> None:
        self._kill_children()

    def judge(self, items: Sequence[Answered]) -> list[Judgement]:
        """Return one judgement per item, in order; `timeout_seconds` is the longest time any one may take.

        Equal answers to equal gold answers are compared once, and again where the child died over them. Raises
        `MissingPackageError` or `StageError` where no child can start. Not for several threads at once.
        """
        answers = [None if item.finish_reason == "length" else self._extract(item.text) for item in items]
        asked = dict.fromkeys(
            (item.gold_answer, answer) for item, answer in zip(items, answers, strict=True) if answer is not None
        )
        outcomes: dict[Question, Outcome | Question] = {question: _outcome_or_question(*question) for question in asked}
        compared = self._compare(list(dict.fromkeys(outcome for outcome in outcomes.values() if isinstance(outcome, tuple))))
        judgements: list[Judgement] = []
        for item, answer in zip(items, answers, strict=True):
            if item.finish_reason == "length":
                judgements.append(Judgement("incorrect", None, "truncated"))
            elif answer is None:
                judgements.append(Judgement("no_answer", None, no_answer_cause(self._answer_forms)))
            else:
                outcome = outcomes[item.gold_answer, answer]
                judgements.append(_judgement(answer, compared[outcome] if isinstance(outcome, tuple) else outcome))
        return judgements

    def _extract(self, completion: str) -> str | None:
        return extract_answer(completion, self._think_end, self._answer_forms)

    def _compare(self, questions: Sequence[Question]) -> dict[Question, Outcome]:
        """Return for each question whether the answers are the same, or the cause why that is not known."""
        waiting, outcomes, failed_starts = deque(questions), dict[Question, Outcome](), 0
        crashed_once = set[Question]()
        try:
            while len(outcomes) < len(questions):
                while len(self._children) < min(self._processes, len(questions) - len(outcomes)):
                    self._children.append(JudgeProcess(self._equivalence, self._timeout_seconds))
                self._hand_out(waiting)
                for child in self._children_with_news():
                    question, outcome = child.outcome()
                    if not child.alive:
                        self._children.remove(child)
                        waiting.extendleft(reversed(child.questions))
                    if question is not None and outcome == "crash" and question not in crashed_once:
                        # The child may have been dying before it was asked, or been killed from outside.
                        crashed_once.add(question)
                        waiting.append(question)
                    elif question is not None:
                        outcomes[question] = outcome
                    elif child.alive:
                        failed_starts = 0
                    elif (failed_starts := failed_starts + 1) == _START_ATTEMPTS:
                        raise child.start_error(_START_ATTEMPTS)
        except BaseException:
            # A child that is still busy would give this call's answer to the next call's question.
            self._kill_children()
            raise
        return outcomes

    def _hand_out(self, waiting: deque[Question]) -> None:
        for child in [child for child in self._children if child.idle]:
            if not waiting:
                return
            batch = _batch(waiting, shared_by=self._processes)
            try:
                if child.worn:
                    raise ConnectionAbortedError("replaced by a fresh one")
                child.ask(batch)
            except ConnectionError:
                # It died while it had nothing to do, which is no question's fault.
                child.kill()
                self._children.remove(child)
            else:
                for _ in batch:
                    waiting.popleft()

    def _children_with_news(self) -> list[JudgeProcess]:
        """Wait until a child has spoken, died or gone over its time; return all such children."""
        working = [child for child in self._children if not child.idle]
        if not working:
            return []
        first_deadline = min(child.deadline for child in working)
        speaking = wait([child.connection for child in working], max(0.0, first_deadline - time.monotonic()))
        now = time.monotonic()
        return [child for child in working if child.connection in speaking or child.deadline <= now]

    def _kill_children(self) -> None:
        while self._children:
            self._children.pop().kill()


def _batch(waiting: Iterable[Question], *, shared_by: int) -> list[Question]:
    """Return the first few of the questions: a fair share, and no more text than goes into a message."""
    waiting = list(islice(waiting, _BATCH * shared_by))
    batch = waiting[: max(1, min(_BATCH, len(waiting) // shared_by))]
    sizes = accumulate(len(gold_answer) + len(answer) for gold_answer, answer in batch)
    return batch[: max(1, sum(size <= _BATCH_CHARACTERS for size in sizes))]


def _outcome_or_question(gold_answer: str, answer: str) -> Outcome | Question:
    """Return the outcome where text, numbers or length tell it, else what to ask a child."""
    if gold_answer.strip() == answer.strip():
        return True
    if max(len(gold_answer), len(answer)) > TOO_LONG:
        both_integers = is_integer(gold_answer) and is_integer(answer)
        return bool(same_plainly(gold_answer, answer)) if both_integers else "too_long"
    gold, other = _readable_gold(gold_answer), readable(answer)
    same = same_plainly(gold, other)
    return (gold, other) if same is None else same


# The traces of a problem come one behind the other.
_readable_gold = lru_cache(maxsize=64)(readable)


def _judgement(answer: str, outcome: Outcome) -> Judgement:
    answer = without_surrogates(answer)
    if isinstance(outcome, str):
        return Judgement("unverifiable", answer, outcome)
    return Judgement("correct" if outcome else "incorrect", answer, None)
