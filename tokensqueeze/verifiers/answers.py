"""The verifier of a run: each problem's own kind says which of the verifiers judges its traces."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from tokensqueeze.config import VerifierSettings
from tokensqueeze.schema import AnswerKind
from tokensqueeze.verifiers.code_tests import CodeVerifier
from tokensqueeze.verifiers.math_answer import MathVerifier
from tokensqueeze.verifiers.multiple_choice import ChoiceVerifier
from tokensqueeze.verifiers.verdict import Answered, Judgement, Verifier


class AnswerVerifier(AbstractContextManager["AnswerVerifier"]):
    """Judges completions of any kind. A kind's verifier is started by the first completion that needs it."""

    def __init__(self, settings: VerifierSettings, *, think_end: str, processes: int = 1) -> None:
        self._makers: Mapping[AnswerKind, Callable[[], Verifier]] = {
            "math": lambda: MathVerifier(
                timeout_seconds=settings.timeout_seconds,
                think_end=think_end,
                answer_forms=settings.answer_forms,
                processes=processes,
            ),
            "choice": lambda: ChoiceVerifier(think_end=think_end, answer_forms=settings.answer_forms),
            "code": lambda: CodeVerifier(settings.code, think_end=think_end, processes=processes),
        }
        self._verifiers: dict[AnswerKind, Verifier] = {}
        self._stack = ExitStack()

    def __exit__(self, *exception: object) -> None:
        self._verifiers.clear()
        self._stack.close()

    def judge(self, items: Sequence[Answered]) -> list[Judgement]:
        """Return one judgement per item, in order. Raises as the verifiers of the items' kinds do."""
        places = defaultdict[AnswerKind, list[int]](list)
        for place, item in enumerate(items):
            places[item.answer_kind].append(place)
        judgements: dict[int, Judgement] = {}
        for kind, own in places.items():
            judgements.update(zip(own, self._verifier(kind).judge([items[place] for place in own]), strict=True))
        return [judgements[place] for place in range(len(items))]

    def _verifier(self, kind: AnswerKind) -> Verifier:
        if kind not in self._verifiers:
            self._verifiers[kind] = self._stack.enter_context(self._makers[kind]())
        return self._verifiers[kind]
