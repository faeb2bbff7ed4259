"""What the models behind the page say in its tests: it depends on the question."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from tests.unit.scripted_source import Step, demo_tokens, says
from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.errors import EngineError
from tokensqueeze.serving.generation import Piece, ServedRequest

QUESTION = "Tom has 12 apples. Tom buys 7 apples. How many apples?"
ANSWER = "\n</think>\n\nThe answer is \\boxed{19}."
LONG = "Okay, so Tom buys 7 apples. I need to add 7. Let me see: 12 + 7 = 19.\n\nWait, let me check that. 12 + 7 = 19." + ANSWER
SHORT = "12 + 7 = 19." + ANSWER
MARKUP = '<b>bold</b>\n</think>\n\n<img src="x" onerror="document.title = 1"> is \\boxed{\\frac{1}{2}}, not \\boxed{3.'

ASKS_FOR_MARKUP = "Write markup."
FOR_EVER = "Think for ever."
BREAKS = "Let the engine break."


def long(request: ServedRequest) -> Iterable[Step]:
    return _script(request, LONG)


def short(request: ServedRequest) -> Iterable[Step]:
    return _script(request, SHORT)


def length(text: str) -> int:
    """Return how many tokens the demo model says a text in, the one that ends it included."""
    return len(demo_tokens(text)) + 1


def _script(request: ServedRequest, text: str) -> Iterable[Step]:
    question = load_tokenizer(demo_model_dir()).decode(list(request.prompt_token_ids))
    if FOR_EVER in question:
        return _for_ever()
    if BREAKS in question:
        return [Piece(tuple(demo_tokens("12 + 7"))), EngineError("the engine broke")]
    if ASKS_FOR_MARKUP in question:
        return says(MARKUP)
    steps = says(text, pause=0.02)
    if request.thinking:
        return [replace(step, thinking_closed=step is steps[1]) if isinstance(step, Piece) else step for step in steps]
    return steps


def _for_ever() -> Iterator[Step]:
    while True:
        yield 0.02
        yield Piece(tuple(demo_tokens(" 7")))
