"""Odd traces and odd draws through proposing and accepting: what can't be rewritten stays, and what is joins exactly.

Draws are scripted, scores are a model's: the demo's, or a random one whose tokenizer merges blank lines into their neighbours.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tokensqueeze.config import EngineSettings, KLBound, Reliable
from tokensqueeze.engines.base import Engine, Generation, GenerationRequest
from tokensqueeze.engines.checkpoint import demo_model_dir, eos_token_ids, load_model, load_tokenizer
from tokensqueeze.rewriters.step_candidates import distinct_candidates
from tokensqueeze.schema import Problem, RefinedTrace, SelectedTrace, StepCandidates
from tokensqueeze.stages.accept_steps import AcceptSteps
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.propose_steps import ProposeSteps
from tokensqueeze.traces.anatomy import Span, replace_spans, step_spans
from tokensqueeze.traces.token_texts import TokenTexts

END = "</think>"
EOS = "<|end|>"
ANYTHING_PASSES = 1e9
SMILE, NUMBER = "🙂".encode(), "数".encode()
MERGES = [
    (b"\n", b"\n"),
    (b".", b"\n\n"),
    (b" ", b"\n\n"),
    (b"!", b"\n\n"),
    (b">", b"\n\n"),
    (b"\n\n", b"\n"),
    (b".", b"\n"),
    (b"<", b"/"),
    (b".", b"</"),
    (b"T", b"h"),
    (b"Th", b"e"),
    (b"\n\n", b"The"),
    (b"!\n\n", b"The"),
    (b"S", b"o"),
    (b"\n", b"So"),
    (b"t", b"h"),
    (b"th", b"i"),
    (b"thi", b"n"),
    (b"thin", b"k"),
    (b" ", b"5"),
    (SMILE[:1], SMILE[1:2]),
    (NUMBER[:1], NUMBER[1:2]),
    (NUMBER[2:], b"\n\n"),
]
"""Of a byte-level BPE without pre-split, in order: what is merged is a token."""


@cache
def merging_tokenizer() -> PreTrainedTokenizerFast:
    symbol = bytes_to_unicode()

    def name(piece: bytes) -> str:
        return "".join(symbol[byte] for byte in piece)

    pieces = [*(bytes([byte]) for byte in range(256)), *(left + right for left, right in MERGES)]
    vocabulary = {name(piece): number for number, piece in enumerate(pieces)}
    bpe = Tokenizer(models.BPE(vocabulary, [(name(left), name(right)) for left, right in MERGES]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(EOS, normalized=False, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS)


def ids(*pieces: str | bytes) -> list[int]:
    """The tokens of the merging tokenizer that have these texts."""
    symbol = bytes_to_unicode()
    names = [EOS if p == EOS else "".join(symbol[b] for b in (p if isinstance(p, bytes) else p.encode())) for p in pieces]
    vocabulary = merging_tokenizer().get_vocab()
    return [vocabulary[name] for name in names]


MERGING = TokenTexts(merging_tokenizer(), frozenset(ids(EOS)))


@dataclass
class ScriptedEngine:
    """Gives each step's requests the scripted draws in turn, each ended where an engine would end it."""

    draws: Sequence[Sequence[int]]
    tokens: TokenTexts
    eos_token_ids: frozenset[int]
    deterministic: bool = True

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return [self._drawn(request, self.draws[i % len(self.draws)]) for i, request in enumerate(requests)]

    def _drawn(self, request: GenerationRequest, script: Sequence[int]) -> Generation:
        for length in range(1, min(len(script), request.max_tokens) + 1):
            text = self.tokens.text(script[:length])
            if script[length - 1] in self.eos_token_ids or any(stop in text for stop in request.stop_texts):
                return Generation(list(script[:length]), "stop")
        # A script that runs out stands for a draw that went on for ever.
        return Generation(list(script[: request.max_tokens]), "length")


@dataclass(frozen=True)
class ScriptedSource(ModelSource):
    draws: tuple[tuple[int, ...], ...] = ()

    def engine(self) -> Engine:
        return ScriptedEngine(self.draws, self.tokens, eos_token_ids(self.folder))


def scripted(folder: Path, draws: Sequence[Sequence[int]]) -> ScriptedSource:
    return ScriptedSource(folder, EngineSettings(), "float32", END, tuple(tuple(draw) for draw in draws))


@pytest.fixture(scope="module")
def merging_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: random weights, and the tokenizer that merges."""
    folder = tmp_path_factory.mktemp("merging")
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=len(merging_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.15,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    merging_tokenizer().save_pretrained(folder)
    return folder


def demo_ids(text: str) -> list[int]:
    return load_tokenizer(demo_model_dir())(text, add_special_tokens=False).input_ids


(DEMO_EOS,) = eos_token_ids(demo_model_dir())
DEMO_PROMPT = demo_ids("<|im_start|>user\n2 + 5?<|im_end|>\n<|im_start|>assistant\n<think>\n")


def selected(source: ModelSource, token_ids: list[int]) -> SelectedTrace:
    text = source.tokens.completion(token_ids)
    return SelectedTrace(
        "p/0", "p", 0, text, token_ids, len(token_ids), "stop", "correct", "7", None, 0, 0, 0, num_correct=1, num_sampled=1
    )


def problem(prompt_token_ids: list[int]) -> Problem:
    return Problem("p", "2 + 5?", "7", "", prompt_token_ids)


@dataclass(frozen=True)
class Refined:
    trace: SelectedTrace
    steps: list[StepCandidates]
    row: RefinedTrace

    @property
    def candidates(self) -> list[list[str]]:
        return [[candidate.text for candidate in step.candidates] for step in self.steps]


def refine(
    source: ScriptedSource, token_ids: list[int], rewriter: KLBound | Reliable, prompt: list[int] = DEMO_PROMPT
) -> Refined:
    """Propose and accept, and check what holds whatever the draws were."""
    trace = selected(source, token_ids)
    inputs = {"problems": [problem(prompt)], "selected_traces": [trace]}
    steps = ProposeSteps(source, rewriter)(inputs).rows
    (row,) = AcceptSteps(source, rewriter)({**inputs, "step_candidates": steps}).rows
    # From the last step to the first, so that no replacement moves what is still to be replaced.
    joined_ids, joined_text = list(token_ids), source.tokens.text(token_ids)
    for step, decision in reversed(list(zip(steps, row.decisions, strict=True))):
        before = len(source.tokens.text(token_ids[: step.token_start]))
        assert joined_text[before:].startswith(step.step_text)
        if decision.rewritten:
            own = [(one.text, len(one.token_ids)) for one in step.candidates]
            kept = step.candidates[own.index((decision.kept_text, decision.kept_tokens))]
            joined_ids[step.token_start : step.token_end] = kept.token_ids
        joined_text = joined_text[:before] + decision.kept_text + joined_text[before + len(step.step_text) :]
    assert row.token_ids == joined_ids
    assert source.tokens.text(row.token_ids) == joined_text
    ended = bool(token_ids) and token_ids[-1] in eos_token_ids(source.folder)
    assert row.text == joined_text.removesuffix(source.tokens.text(token_ids[-1:]) if ended else "")
    assert row.text.rpartition(END)[2] == trace.text.rpartition(END)[2] or END not in trace.text
    return Refined(trace, steps, row)


def refine_demo(text: str, draws: Sequence[str], rewriter: KLBound | Reliable | None = None) -> Refined:
    source = scripted(demo_model_dir(), [demo_ids(draw) for draw in draws])
    rewriter = rewriter or KLBound(num_candidates=len(draws), kl_bound=ANYTHING_PASSES)
    return refine(source, [*demo_ids(text), DEMO_EOS], rewriter)


# Traces


def test_a_trace_with_one_step_is_rewritten_in_front_of_its_answer() -> None:
    refined = refine_demo("So 2 + 5 = 7.\n</think>\n\nThe answer is \\boxed{7}.", ["7.\n\n", "So 7.\n</think>"])
    assert [step.step_text for step in refined.steps] == ["So 2 + 5 = 7."]
    assert refined.row.text == "7.\n</think>\n\nThe answer is \\boxed{7}."
    assert [decision.rewritten for decision in refined.row.decisions] == [True]


@pytest.mark.parametrize("blank", ["\n\n\n", "\n\n\n\n", "\n\n \n\n", "\n\n\t\n \n\n", " \n\n", "\n\n   "])
def test_white_space_between_steps_is_no_step_and_stays(blank: str) -> None:
    text = f"{blank}So 2 + 5 = 7.{blank}Yes, that is 7.{blank}</think>\n\n\\boxed{{7}}"
    refined = refine_demo(text, ["7.\n\n"])
    assert [step.step_text.strip() for step in refined.steps] == ["So 2 + 5 = 7.", "Yes, that is 7."]
    assert re.sub(r"\s+", " ", refined.row.text) == " 7. 7. </think> \\boxed{7}"
    assert refined.row.text.count("\n") == text.count("\n")


def test_a_thinking_block_of_white_space_alone_has_no_step() -> None:
    for text in ("\n\n\n\n</think>\n\n\\boxed{7}", " \n</think>\\boxed{7}", "</think>\\boxed{7}", ""):
        refined = refine_demo(text, ["7.\n\n"])
        assert refined.steps == [] and refined.row.token_ids == refined.trace.token_ids


@pytest.mark.parametrize("window_tokens", [1, 3, 512])
def test_a_step_longer_than_the_window_is_judged_on_the_tokens_behind_it(window_tokens: int) -> None:
    refined = refine_demo(
        "First, 2 + 5 = 7, so that is 7.\n\nYes, 7.\n</think>\n\nThe answer is \\boxed{7}.",
        ["So 7.\n\n"],
        KLBound(num_candidates=1, kl_bound=ANYTHING_PASSES, window_tokens=window_tokens),
    )
    step, decision = refined.steps[0], refined.row.decisions[0]
    assert step.token_end - step.token_start > 3 and decision.kept_text == "So 7."
    ids_behind = refined.trace.token_ids[step.token_end :][:window_tokens]
    model = load_model(demo_model_dir(), torch.float64)

    def predictions(step_ids: list[int]) -> torch.Tensor:
        before = [*DEMO_PROMPT, *step_ids]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*before, *ids_behind]])).logits[0, len(before) - 1 : -1]
        return torch.log_softmax(logits, dim=-1)

    p, q = predictions(refined.trace.token_ids[: step.token_end]), predictions(step.candidates[0].token_ids)
    assert decision.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def test_a_trace_without_a_blank_line_is_one_step_up_to_the_closing_tag() -> None:
    refined = refine_demo("So 2 + 5\nis 7.</think>\\boxed{7}", ["7.\n\n"])
    assert [step.step_text for step in refined.steps] == ["So 2 + 5\nis 7."]
    assert refined.row.text == "7.</think>\\boxed{7}"


def test_a_trace_without_a_blank_line_that_is_never_closed_has_no_step() -> None:
    refined = refine_demo("So 2 + 5 is \\boxed{7}", ["7.\n\n"])
    assert refined.steps == [] and refined.row.token_ids == refined.trace.token_ids


@pytest.mark.parametrize("behind", ["", "\n", "\n\n", " \n\n\n"])
def test_the_answer_of_a_thinking_block_that_is_never_closed_is_no_step(behind: str) -> None:
    refined = refine_demo(f"First, 2 + 5.\n\nThat makes 7.\n\nSo it is \\boxed{{7}}.{behind}", ["7.\n\n"])
    assert [step.step_text for step in refined.steps] == ["First, 2 + 5.", "That makes 7."]
    assert refined.row.text == f"7.\n\n7.\n\nSo it is \\boxed{{7}}.{behind}"


def test_a_wrong_step_and_its_correction_are_replaced_together_with_the_blank_line_between_them() -> None:
    text = "So 2 + 5 = 8.\n\nWait, that is wrong. 2 + 5 = 7.\n\nYes.\n</think>\n\n\\boxed{7}"
    rewriter = Reliable(
        num_candidates=4, kl_bound=ANYTHING_PASSES, unit="corrected_step", min_form_draws=1, min_reliability=0.5
    )
    refined = refine_demo(text, ["2 + 5 = 7.\n\n"], rewriter)
    assert [step.step_text for step in refined.steps] == ["So 2 + 5 = 8.\n\nWait, that is wrong. 2 + 5 = 7.", "Yes."]
    assert refined.row.decisions[0].kept_text == "2 + 5 = 7."
    assert refined.row.text.startswith("2 + 5 = 7.\n\n")


# Candidates

STEP = "So 2 + 5 is 7, as I said."
TRACE = f"{STEP}\n\nYes.\n</think>\n\n\\boxed{{7}}"
REWRITERS = [KLBound(num_candidates=3, kl_bound=ANYTHING_PASSES), Reliable(num_candidates=3, kl_bound=ANYTHING_PASSES)]


@pytest.mark.parametrize("rewriter", REWRITERS, ids=lambda rewriter: rewriter.name)
@pytest.mark.parametrize("draws", [["\n\n", " \n\n", "\n\n\n"], ["</think>", "\n</think>", " \n </think>"]])
def test_an_empty_candidate_is_none_and_its_step_stays(draws: list[str], rewriter: KLBound | Reliable) -> None:
    refined = refine_demo(TRACE, draws, rewriter)
    assert refined.candidates == [[], []]
    assert refined.row.token_ids == refined.trace.token_ids


@pytest.mark.parametrize("rewriter", REWRITERS, ids=lambda rewriter: rewriter.name)
def test_a_candidate_that_hits_the_token_limit_is_none(rewriter: KLBound | Reliable) -> None:
    never_ends = "and 7 " * 400
    refined = refine_demo(TRACE, [never_ends, never_ends, "Seven.\n\n"], rewriter)
    assert refined.candidates[0] == ["Seven."]
    assert all(step.candidates[0].draws == 1 for step in refined.steps[:1])
    most = len(demo_ids(STEP)) + 1 if isinstance(rewriter, KLBound) else rewriter.max_step_tokens + 2
    assert refined.steps[0].tokens_generated == 2 * most + len(demo_ids("Seven.\n\n"))


def test_a_candidate_one_token_shorter_than_its_step_has_room_to_end() -> None:
    for ending in ("\n\n", "\n</think>"):
        length = len(demo_ids(STEP))
        draw = demo_ids(STEP)[: length - 2] + demo_ids(".") + demo_ids(ending)
        source = scripted(demo_model_dir(), [draw])
        refined = refine(source, [*demo_ids(TRACE), DEMO_EOS], KLBound(num_candidates=1, kl_bound=ANYTHING_PASSES))
        assert [len(candidate.token_ids) for candidate in refined.steps[0].candidates] == [length - 1]


@pytest.mark.parametrize(
    "draw", ["7.</think>", "7.\n</think>", "7.</think>\n\nSo \\boxed{8}.", "7. </think> and 8.\n\n", "7.</think></think>"]
)
def test_a_candidate_ends_in_front_of_an_end_of_thinking_tag_wherever_it_stands(draw: str) -> None:
    # The script as it is, as an engine without stop texts would leave it, and cut as an engine does.
    tokens = ModelSource(demo_model_dir(), EngineSettings(), "float32", END).tokens
    (whole,) = distinct_candidates(
        [Generation(demo_ids(draw), "stop")], step_text=STEP, think_end=END, max_tokens=None, tokens=tokens
    )
    assert (whole.text, whole.token_ids) == ("7.", demo_ids("7."))
    refined = refine_demo(TRACE, [draw])
    assert refined.candidates[0] == ["7."]
    assert refined.row.text.startswith("7.\n\n") and refined.row.text.count(END) == 1


@pytest.mark.parametrize("rewriter", REWRITERS, ids=lambda rewriter: rewriter.name)
def test_a_candidate_that_contains_the_end_of_sequence_token_is_none(rewriter: KLBound | Reliable) -> None:
    source = scripted(
        demo_model_dir(),
        [
            [*demo_ids("7."), DEMO_EOS],
            [*demo_ids("7."), DEMO_EOS, *demo_ids("\n\n")],
            [DEMO_EOS],
        ],
    )
    refined = refine(source, [*demo_ids(TRACE), DEMO_EOS], rewriter)
    assert refined.candidates == [[], []]


def test_an_end_of_sequence_token_inside_a_draw_or_spelled_out_in_it_is_no_candidate() -> None:
    source = ModelSource(demo_model_dir(), EngineSettings(), "float32", END)
    spelled_out = [token for character in "<|im_end|>" for token in demo_ids(character)]
    assert DEMO_EOS not in spelled_out and source.tokens.text(spelled_out) == source.tokens.text([DEMO_EOS])
    for end in ([DEMO_EOS], spelled_out):
        for behind in ([], demo_ids(" Yes.")):
            draw = [*demo_ids("7."), *end, *behind, *demo_ids("\n\n")]
            for step_text in (STEP, STEP + "\n"):
                found = distinct_candidates(
                    [Generation(draw, "stop")], step_text=step_text, think_end=END, max_tokens=None, tokens=source.tokens
                )
                assert found == []


# A tokenizer that merges blank lines into their neighbours


def texts_of(*pieces: str | bytes) -> list[str]:
    token_ids = ids(*pieces)
    return [MERGING.text(token_ids[span.start : span.end]) for span in step_spans(MERGING.each(token_ids), END)]


def test_the_tokenizer_of_these_tests_merges_as_real_ones_do() -> None:
    def pieces(text: str) -> list[str]:
        return MERGING.each(MERGING.encode(text))

    assert pieces("a.\n\nb") == ["a", ".\n\n", "b"]
    assert pieces("a\n\n\nb") == ["a", "\n\n\n", "b"]
    assert pieces("a \n\nb") == ["a", " \n\n", "b"]
    assert pieces("a\n\nThe") == ["a", "\n\nThe"]
    assert pieces("a!\n\nThe") == ["a", "!\n\nThe"]
    assert pieces("a.</think>\n\n") == ["a", ".</", "think", ">\n\n"]
    assert len(pieces("🙂")) == 3 and len(pieces("数\n\n")) == 2


END_TAG = ("</", "think", ">")


@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (("a", ".\n\n", "b", ".\n", *END_TAG), ["a.\n\n", "b.\n"]),
        # Where some step's last token holds its blank line, all have theirs.
        (("a", ".\n\n", "5", "\n\n", "b", ".", "\n", *END_TAG), ["a.\n\n", "5\n\n", "b.\n"]),
        (("a", ".\n\n", "5", "\n", "\n", "b", *END_TAG), ["a.\n\n", "5\n\n", "b"]),
        (("a", ".\n\n", "5", " \n\n", "b", *END_TAG), ["a.\n\n", "5 \n\n", "b"]),
        # Where none's does, none has.
        (("a", "\n\n\n", "b", " \n\n", "c", "\n", *END_TAG), ["a", "b", "c"]),
        # What holds a blank line and the text behind it stays, and half a blank line is as good as a whole one.
        (("a", "\n\nThe", " 5", "\n\n", "b", *END_TAG), ["a", " 5", "b"]),
        (("a", ".", "\n", "\nSo", " 5", *END_TAG), ["a.", " 5"]),
        (("a", ".\n", "\nSo", " 5", *END_TAG), ["a.\n", " 5"]),
        (("a", "\n\nThe", "\n\n", "b", *END_TAG), ["a", "b"]),
        (("a", ".\n\n", "b", "\n\nThe", *END_TAG), ["a.\n\n", "b"]),
        (("\n\nThe", " 5", *END_TAG), [" 5"]),
        # Two steps with a token in common are one.
        (("a", "!\n\nThe", " 5", ".\n\n", "b", *END_TAG), ["a!\n\nThe 5.\n\n", "b"]),
        (("a", "!\n\nThe", "!\n\nThe", " 5", *END_TAG), ["a!\n\nThe!\n\nThe 5"]),
        # What shares a token with the tag or with the answer can't be replaced alone.
        (("a", ".\n\n", "b", ".</", "think", ">"), ["a.\n\n"]),
        (("a", "!\n\nThe", ".</", "think", ">"), []),
        (("a", ".\n\n", "b", "!\n\nThe", " 5"), ["a.\n\n"]),
        (("a", ".\n\n", "b", "\n\nThe", " 5"), ["a.\n\n", "b"]),
        # Characters over several tokens, the last with the blank line.
        ((NUMBER[:2], NUMBER[2:] + b"\n\n", "b", *END_TAG), ["数\n\n", "b"]),
        (("a", ".\n\n", SMILE[:2], SMILE[2:3], SMILE[3:], "\n", *END_TAG), ["a.\n\n", "🙂\n"]),
    ],
)
def test_steps_are_found_however_blank_lines_are_merged(pieces: tuple[str | bytes, ...], steps: list[str]) -> None:
    assert texts_of(*pieces) == steps


def test_drawn_tokens_are_kept_with_their_merged_blank_line_and_the_rest_stays_token_for_token(merging_folder: Path) -> None:
    # Not as the tokenizer would spell it: a draw's tokens are the model's choice.
    draws = [ids("T", "h", "e", " 5", ".\n\n"), ids("7", "\n\n"), ids("7", "7", "\n", *END_TAG)]
    trace = [
        *ids("T", "h", "e", " ", "5", "a", "b", "c", ".\n\n"),
        *ids("c", "5", "a", "b", "c", "\n\n"),
        *ids("b", "b", "b", "b", "\n"),
        *ids(*END_TAG, "\n\nThe", " 5", EOS),
    ]
    rewriter = KLBound(num_candidates=3, kl_bound=ANYTHING_PASSES)
    refined = refine(scripted(merging_folder, draws), trace, rewriter, prompt=ids("a", "b", "\n"))
    assert [step.step_text for step in refined.steps] == ["The 5abc.\n\n", "c5abc\n\n", "bbbb\n"]
    behind_a_step, last = ["The 5.\n\n", "7\n\n", "77\n\n"], ["The 5.\n", "7\n", "77\n"]
    assert refined.candidates == [behind_a_step, behind_a_step, last]
    first = refined.steps[0].candidates
    assert [candidate.token_ids for candidate in first[:2]] == [draws[0], draws[1]]
    # Drawn with another ending than the step's, so the tokenizer spells it; and so it is with the last step's first two.
    assert first[2].token_ids == ids("7", "7", "\n\n")
    spelled = [ids("The", " 5", ".\n"), ids("7", "\n"), draws[2][:3]]
    assert [candidate.token_ids for candidate in refined.steps[2].candidates] == spelled
    assert refined.row.text == "7\n\n7\n\n7\n</think>\n\nThe 5"
    assert refined.row.token_ids == ids("7", "\n\n", "7", "\n\n", "7", "\n", *END_TAG, "\n\nThe", " 5", EOS)


PIECES: list[tuple[str | bytes, ...]] = [
    *((piece,) for piece in ("a", "b", ".", " ", " 5", "\n", "\n\n", "\n\n\n", ".\n\n", " \n\n", ".\n", "So", "The", "!")),
    *((piece,) for piece in ("\n\nThe", "!\n\nThe", "\nSo", ".</", "</", ">\n\n", "think")),
    END_TAG,
    (".</", "think", ">\n\n"),
    (SMILE[:2], SMILE[2:3], SMILE[3:]),
    (NUMBER[:2], NUMBER[2:] + b"\n\n"),
    # Half a character, as a random draw may have it.
    (SMILE[:2],),
    (NUMBER[2:] + b"\n\n",),
]
"""Blank lines in all ways to write them, tags and characters over several tokens."""
COMPLETIONS = st.lists(st.sampled_from(PIECES), max_size=24).map(
    lambda parts: ids(*(piece for part in parts for piece in part))
)

DRAWS = st.tuples(COMPLETIONS, st.sampled_from([(), ("\n\n",), (".\n\n",), ("\n\nThe",), END_TAG])).map(
    lambda draw: [*draw[0][:6], *ids(*draw[1])]
)
"""Short, and nearly always ended."""


def paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\n\s*", text) if part.strip()]


@given(COMPLETIONS, st.sampled_from([[], ids(EOS)]))
def test_splitting_and_joining_are_exact_inverses_whatever_is_merged(completion: list[int], end: list[int]) -> None:
    completion = [*completion, *end]
    spans = step_spans(MERGING.each(completion), END)
    assert replace_spans(completion, {span: completion[span.start : span.end] for span in spans}) == completion
    assert all(0 <= span.start < span.end <= len(completion) - len(end) for span in spans)
    assert all(before.end <= behind.start for before, behind in itertools.pairwise(spans))
    assert all(MERGING.text(completion[span.start : span.end]).strip() for span in spans)
    text = MERGING.completion(completion)
    thinking, tag, answer = text.rpartition(END)
    last_paragraph = text.rindex(paragraphs(answer)[-1]) if not tag and answer.strip() else 0
    assert all(len(MERGING.text(completion[: span.end])) <= (len(thinking) if tag else last_paragraph) for span in spans)


TEXTS = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["\n", "\n\n", " ", ". ", "5", "The", "数", "🙂", END]))).map(
    "".join
)


@given(TEXTS)
def test_where_nothing_is_merged_the_steps_of_any_text_are_its_paragraphs(text: str) -> None:
    source = ModelSource(demo_model_dir(), EngineSettings(), "float32", END)
    head, tag, _ = text.rpartition(END)
    for whole, thinking in ((f"{text}{END}7", text), (f"{text}\n\n7", head if tag else text)):
        token_ids = demo_ids(whole)
        assert source.tokens.text(token_ids) == whole
        spans = step_spans(source.tokens.each(token_ids), END)
        found = [source.tokens.text(token_ids[span.start : span.end]) for span in spans]
        assert [one.strip() for one in found] == paragraphs(thinking)


@given(COMPLETIONS, st.lists(DRAWS, min_size=1, max_size=4))
def test_rewritten_steps_leave_everything_else_where_it_was_whatever_is_merged(
    completion: list[int], draws: list[list[int]]
) -> None:
    spans = step_spans(MERGING.each(completion), END)
    replacements: dict[Span, list[int]] = {}
    text, blank_lines_lost = MERGING.text(completion), 0
    for index, span in reversed(list(enumerate(spans))):
        step_text = MERGING.text(completion[span.start : span.end])
        drawn = [Generation(draws[index % len(draws)], "stop")]
        found = distinct_candidates(drawn, step_text=step_text, think_end=END, max_tokens=None, tokens=MERGING)
        for candidate in found:
            before = len(MERGING.text(completion[: span.start]))
            assert text[before:].startswith(step_text)
            text = text[:before] + candidate.text + text[before + len(step_text) :]
            replacements[span] = candidate.token_ids
            blank_lines_lost += len(paragraphs(step_text)) - 1
    joined = MERGING.text(replace_spans(completion, replacements))
    assert joined == text
    thinking, tag, answer = MERGING.text(completion).rpartition(END)
    new_thinking, new_tag, new_answer = joined.rpartition(END)
    assert new_tag == tag and joined.count(END) <= MERGING.text(completion).count(END)
    if tag:
        assert new_answer == answer
        assert len(paragraphs(new_thinking)) == len(paragraphs(thinking)) - blank_lines_lost
    else:
        assert paragraphs(joined)[-1:] == paragraphs(answer)[-1:]
        assert len(paragraphs(joined)) == len(paragraphs(answer)) - blank_lines_lost


@given(DRAWS, st.sampled_from(["a", "a.\n\n", "a\n", "a \n\n", "数\n\n"]))
def test_a_candidate_has_the_drawn_tokens_wherever_they_spell_it(draw: list[int], step_text: str) -> None:
    found = distinct_candidates([Generation(draw, "stop")], step_text=step_text, think_end=END, max_tokens=None, tokens=MERGING)
    written = re.split(r"\n\n|</think>", MERGING.text(draw))
    content = written[0].rstrip()
    if len(written) == 1 or not content:
        assert found == []
        return
    (candidate,) = found
    assert candidate.text == content + step_text.removeprefix(step_text.rstrip())
    assert MERGING.text(candidate.token_ids) == candidate.text
    spelled = [draw[:length] for length in range(len(draw) + 1) if MERGING.text(draw[:length]) == candidate.text]
    assert candidate.token_ids in (spelled or [MERGING.encode(candidate.text)])
