"""Is a completion's boxed answer the gold answer? Plain text and integers are compared here, the rest by Math-Verify.

Math-Verify works in child processes that are killed when they exceed their time. What could not be judged is
`unverifiable` with its cause, never `incorrect`.
"""

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import wait

from tokensqueeze.config import AnswerForm
from tokensqueeze.verifiers.boxed import last_boxed
from tokensqueeze.verifiers.judge_process import JudgeProcess, Question
from tokensqueeze.verifiers.verdict import Answered, Judgement

EQUIVALENCE = "tokensqueeze.verifiers.math_equivalence"

_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_START_ATTEMPTS = 3


def extract_answer(completion: str, think_end: str) -> str | None:
    """Return the contents of the last `\\boxed{}` behind the last end of thinking, or nothing.

    A completion that never ends its thinking is searched whole; an unclosed or empty box is none.
    """
    return last_boxed(completion.rpartition(think_end)[2])


def same_plainly(gold_answer: str, answer: str) -> bool | None:
    """Return whether two answers are the same where text or integers tell, else nothing."""
    gold_answer, answer = gold_answer.strip(), answer.strip()
    if gold_answer == answer:
        return True
    if _INTEGER.fullmatch(gold_answer) and _INTEGER.fullmatch(answer):
        return int(gold_answer) == int(answer)
    return None


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
        answers = [None if item.finish_reason == "length" else extract_answer(item.text, self._think_end) for item in items]
        hard = {
            (item.gold_answer, answer): None
            for item, answer in zip(items, answers, strict=True)
            if answer is not None and same_plainly(item.gold_answer, answer) is None
        }
        outcomes = self._compare(list(hard))
        return [_judgement(item, answer, outcomes) for item, answer in zip(items, answers, strict=True)]

    def _compare(self, questions: Sequence[Question]) -> dict[Question, bool | str]:
        """Return for each question whether the answers are the same, or the cause why that is not known."""
        waiting, outcomes, failed_starts = deque(questions), dict[Question, bool | str](), 0
        crashed_once = set[Question]()
        try:
            while len(outcomes) < len(questions):
                while len(self._children) < min(self._processes, len(questions) - len(outcomes)):
                    self._children.append(JudgeProcess(self._equivalence, self._timeout_seconds))
                self._hand_out(waiting)
                for child in self._children_with_news():
                    question, outcome = child.question, child.outcome()
                    if not child.alive:
                        self._children.remove(child)
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
            try:
                child.ask(waiting[0])
            except ConnectionError:
                # It died while it had nothing to do, which is no question's fault.
                child.kill()
                self._children.remove(child)
            else:
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


def _judgement(item: Answered, answer: str | None, outcomes: Mapping[Question, bool | str]) -> Judgement:
    if item.finish_reason == "length":
        return Judgement("incorrect", None, "truncated")
    if answer is None:
        return Judgement("no_answer", None, "no_boxed")
    outcome = same_plainly(item.gold_answer, answer)
    if outcome is None:
        outcome = outcomes[item.gold_answer, answer]
    if isinstance(outcome, str):
        return Judgement("unverifiable", answer, outcome)
    return Judgement("correct" if outcome else "incorrect", answer, None)
