"""The batch that serves, against `TransformersEngine.generate`, whose own tests hold it against transformers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.base import GenerationRequest, ThinkingLimit, TokenLogprob
from tokensqueeze.engines.build import build_batch
from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.engines.continuous_batch import ContinuousBatch
from tokensqueeze.engines.served_row import ServedRow
from tokensqueeze.engines.thinking_watch import ThinkingWatch
from tokensqueeze.engines.transformers_engine import TransformersEngine
from tokensqueeze.errors import EngineError
from tokensqueeze.traces.thinking_budget import cut_at_budget
from tokensqueeze.traces.token_texts import TokenTexts

SLOTS = 4
THINK_END = "</think>"


@dataclass
class Completion:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    thinking_closed: bool = False


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return build_batch(demo_model_dir(), EngineSettings(max_batch_size=SLOTS), "float32").engine


@pytest.fixture(scope="module")
def texts(engine: TransformersEngine) -> TokenTexts:
    return TokenTexts(load_tokenizer(demo_model_dir()), engine.eos_token_ids)


def prompt(question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    tokenizer: Any = load_tokenizer(demo_model_dir())
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def asked(seed: int, *, temperature: float = 0.8, top_p: float = 1.0, max_tokens: int = 400) -> GenerationRequest:
    """Questions of different lengths; every third is the one before it again."""
    number = seed - (seed % 3 == 2)
    question = f"Ann has {number} apples and buys {number * 7} more" + ", then eats one" * (number % 4) + ". How many are left?"
    return GenerationRequest(prompt(question), max_tokens, temperature, top_p, seed)


def run(
    batch: ContinuousBatch, completions: dict[str, Completion], *, before_step: Callable[[int], None] = lambda _: None
) -> dict[str, Completion]:
    """Step until the batch is empty."""
    step = 0
    before_step(step)
    while batch.active or batch.waiting:
        for growth in batch.step():
            completion = completions.setdefault(growth.key, Completion())
            assert completion.finish_reason is None
            completion.token_ids += growth.token_ids
            completion.logprobs += growth.logprobs or []
            completion.finish_reason = growth.finish_reason
            completion.thinking_closed |= growth.thinking_closed
        step += 1
        before_step(step)
    return completions


def complete(
    engine: TransformersEngine,
    request: GenerationRequest,
    *,
    generated: Sequence[int] = (),
    thinking: ThinkingLimit | None = None,
    top_logprobs: int | None = None,
    prompt_share: int = 256,
) -> Completion:
    batch = ContinuousBatch(engine, prompt_share=prompt_share)
    batch.add("only", request, generated_token_ids=generated, thinking=thinking, top_logprobs=top_logprobs)
    return run(batch, {})["only"]


@pytest.mark.parametrize(("temperature", "top_p", "prompt_share"), [(0.0, 1.0, 60), (0.8, 1.0, 8), (1.2, 0.9, 256)])
def test_requests_that_join_at_different_times_get_what_each_gets_alone(
    engine: TransformersEngine, temperature: float, top_p: float, prompt_share: int
) -> None:
    """A share of 8 tokens reads every prompt in pieces, one of 60 reads two or so together."""
    requests = [asked(seed, temperature=temperature, top_p=top_p) for seed in range(12)]
    batch = ContinuousBatch(engine, prompt_share=prompt_share)
    arrivals = [0, 0, 0, 1, 1, 5, 9, 9, 20, 20, 21, 60]

    def arrive(step: int) -> None:
        for seed, (request, arrival) in enumerate(zip(requests, arrivals, strict=True)):
            if arrival == step:
                batch.add(str(seed), request)

    # Keeps the batch going until the last have come.
    batch.add("company", asked(99, temperature=2.0))
    completions = run(batch, {}, before_step=arrive)
    assert len(completions) == 13
    for seed, generation in enumerate(engine.generate(requests)):
        assert completions[str(seed)].token_ids == generation.token_ids
        assert completions[str(seed)].finish_reason == generation.finish_reason


def test_a_row_draws_with_the_numbers_that_generate_draws_with_from_any_place_on() -> None:
    expected = np.random.Generator(np.random.Philox(key=77)).random(1000).tolist()
    for begun in (0, 1, 255, 256, 600):
        row = ServedRow("row", GenerationRequest([5], 1024, 1.0, 1.0, 77), 1023, frozenset(), [0] * begun, None, None)
        drawn = []
        while len(row.token_ids) < 1000:
            drawn.append(row.next_uniform())
            row.take(0)
        assert drawn == expected[begun:]


def test_mixed_greedy_and_sampled_rows_keep_their_own_way(engine: TransformersEngine) -> None:
    requests = [asked(seed, temperature=0.0 if seed % 2 else 1.0, top_p=0.5 if seed % 4 == 0 else 1.0) for seed in range(8)]
    batch = ContinuousBatch(engine)
    for seed, request in enumerate(requests):
        batch.add(str(seed), request)
    completions = run(batch, {})
    assert [completions[str(seed)].token_ids for seed in range(8)] == [g.token_ids for g in engine.generate(requests)]


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_completion_that_is_gone_on_with_gets_the_rest_it_would_have_got(engine: TransformersEngine, cut: int) -> None:
    for seed in range(4):
        whole = complete(engine, asked(seed))
        begun = min(cut, len(whole.token_ids) - 1)
        rest = complete(engine, asked(seed), generated=whole.token_ids[:begun])
        assert rest.token_ids == whole.token_ids[begun:]
        assert rest.finish_reason == whole.finish_reason


def test_a_request_that_is_cancelled_frees_its_slot_and_changes_nobody_elses_tokens(engine: TransformersEngine) -> None:
    requests = [asked(seed) for seed in range(6, 12)]
    batch = ContinuousBatch(engine)
    for seed, request in enumerate(requests):
        batch.add(str(seed), request)

    def leave(step: int) -> None:
        if step == 4:
            assert (batch.active, batch.waiting) == (SLOTS, 2)
            batch.cancel("1")
            batch.cancel("5")
            batch.cancel("nobody")
            assert (batch.active, batch.waiting) == (SLOTS - 1, 1)
        if step == 5:
            assert (batch.active, batch.waiting) == (SLOTS, 0)

    completions = run(batch, {}, before_step=leave)
    expected = engine.generate(requests)
    for seed in (0, 2, 3, 4):
        assert completions[str(seed)].token_ids == expected[seed].token_ids
    assert completions["1"].token_ids == expected[1].token_ids[: len(completions["1"].token_ids)]
    assert completions["1"].finish_reason is None
    assert "5" not in completions


def test_a_long_prompt_that_is_cancelled_while_it_is_read_leaves_nothing(engine: TransformersEngine) -> None:
    batch = ContinuousBatch(engine, prompt_share=50)
    batch.add("long", GenerationRequest(prompt("apples " * 100), 10, 0.0, 1.0, 0))
    assert batch.step() == []
    assert batch.active == 1
    batch.cancel("long")
    assert (batch.active, batch.waiting) == (0, 0)
    batch.add("next", asked(3))
    assert run(batch, {})["next"].token_ids == engine.generate([asked(3)])[0].token_ids


def reads(engine: TransformersEngine) -> tuple[list[int], Callable[[], None]]:
    """Count the prompt tokens of every pass; the second part ends the counting."""
    sizes: list[int] = []

    def count(_module: object, _arguments: object, inputs: Mapping[str, torch.Tensor]) -> None:
        if inputs["input_ids"].numel() > SLOTS:
            sizes.append(inputs["input_ids"].numel())

    hook = engine.model.base_model.register_forward_pre_hook(count, with_kwargs=True)  # type: ignore[arg-type]
    return sizes, hook.remove


def test_running_rows_wait_for_no_more_than_one_share_of_prompts_per_step(engine: TransformersEngine) -> None:
    batch = ContinuousBatch(engine, prompt_share=50)
    long = GenerationRequest(prompt("apples " * 300), 5, 0.0, 1.0, 0)
    pieces = math.ceil((len(long.prompt_token_ids) - 1) / 50)
    assert pieces > 4
    batch.add("running", asked(0, temperature=0.0))
    batch.step()
    batch.add("long", long)
    sizes, stop_counting = reads(engine)
    started: dict[str, int] = {}
    for step in range(pieces + 1):
        if step == 1:
            batch.add("short", asked(1))
        for growth in batch.step():
            started.setdefault(growth.key, step)
    stop_counting()
    assert max(sizes) <= 50
    # The short prompt went between two pieces of the long one.
    assert started == {"running": 0, "short": 2, "long": pieces}


def test_choices_of_one_prompt_read_it_once(engine: TransformersEngine) -> None:
    batch = ContinuousBatch(engine)
    requests = [GenerationRequest(prompt("How many apples are there?"), 30, 1.0, 1.0, seed) for seed in range(4)]
    sizes, stop_counting = reads(engine)
    for seed, request in enumerate(requests[:3]):
        batch.add(str(seed), request)
    completions: dict[str, Completion] = {}
    for growth in batch.step():
        completions.setdefault(growth.key, Completion()).token_ids += growth.token_ids
    # Comes later, and finds the prompt in a slot that runs.
    batch.add("3", requests[3])
    run(batch, completions)
    stop_counting()
    assert sizes == [len(requests[0].prompt_token_ids) - 1]
    assert [completions[str(seed)].token_ids for seed in range(4)] == [g.token_ids for g in engine.generate(requests)]


@pytest.mark.parametrize("budget", [0, 5, 30])
def test_thinking_is_closed_where_cutting_the_whole_completion_would_close_it(
    engine: TransformersEngine, texts: TokenTexts, budget: int
) -> None:
    close = tuple(texts.encode(f"\n{THINK_END}\n\n"))
    for seed in range(4):
        request = asked(seed)
        whole = engine.generate([request])[0]
        kept = cut_at_budget(texts.each(whole.token_ids), THINK_END, budget)
        limited = complete(engine, request, thinking=ThinkingLimit(budget, THINK_END, close))
        assert limited.thinking_closed == (kept is not None)
        beginning = whole.token_ids if kept is None else [*whole.token_ids[:kept], *close]
        assert limited.token_ids[: len(beginning)] == beginning
        if kept is not None:
            # The answer is what the model draws behind the close, with the numbers of those places.
            rest = complete(engine, request, generated=beginning)
            assert limited.token_ids[len(beginning) :] == rest.token_ids
            assert limited.finish_reason == rest.finish_reason


def test_greedy_answers_behind_a_close_are_those_of_a_second_call(engine: TransformersEngine, texts: TokenTexts) -> None:
    close = tuple(texts.encode(f"\n{THINK_END}\n\n"))
    request = asked(4, temperature=0.0)
    limited = complete(engine, request, thinking=ThinkingLimit(3, THINK_END, close))
    beginning = [*engine.generate([request])[0].token_ids[:3], *close]
    second = GenerationRequest([*request.prompt_token_ids, *beginning], 400, 0.0, 1.0, 0)
    assert limited.token_ids == [*beginning, *engine.generate([second])[0].token_ids]


def test_a_limited_completion_can_be_gone_on_with_from_every_place_it_was_handed_out_to(
    engine: TransformersEngine, texts: TokenTexts
) -> None:
    limit = ThinkingLimit(5, THINK_END, tuple(texts.encode(f"\n{THINK_END}\n\n")))
    batch = ContinuousBatch(engine)
    batch.add("whole", asked(0), thinking=limit, top_logprobs=0)
    ends, whole = [0], []
    closes_in = []
    while batch.active or batch.waiting:
        for growth in batch.step():
            whole += growth.token_ids
            closes_in += [growth.token_ids] if growth.thinking_closed else []
            ends.append(len(whole))
    # The close went out in one.
    assert closes_in == [list(limit.close_token_ids)]
    for end in ends[:-1]:
        assert complete(engine, asked(0), generated=whole[:end], thinking=limit).token_ids == whole[end:]


def test_a_limit_on_tokens_holds_while_the_thinking_is_closed(engine: TransformersEngine, texts: TokenTexts) -> None:
    close = tuple(texts.encode(f"\n{THINK_END}\n\n"))
    assert len(close) > 1
    request = asked(0, max_tokens=6)
    completion = complete(engine, request, thinking=ThinkingLimit(5, THINK_END, close))
    assert completion.token_ids == [*engine.generate([request])[0].token_ids[:5], close[0]]
    assert completion.finish_reason == "length"


def test_logprobs_are_those_of_a_plain_forward_pass(engine: TransformersEngine, texts: TokenTexts) -> None:
    close = tuple(texts.encode(f"\n{THINK_END}\n\n"))
    request = asked(0, temperature=0.7, top_p=0.9)
    for thinking in (None, ThinkingLimit(7, THINK_END, close)):
        completion = complete(engine, request, thinking=thinking, top_logprobs=3)
        ids = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
        with torch.inference_mode():
            logits_TV = engine.model(input_ids=ids).logits[0, len(request.prompt_token_ids) - 1 : -1]
        logps_TV = torch.log_softmax(logits_TV.double(), dim=-1)
        assert len(completion.logprobs) == len(completion.token_ids)
        for logps_V, token, given_logprob in zip(logps_TV, completion.token_ids, completion.logprobs, strict=True):
            assert given_logprob.logprob == pytest.approx(float(logps_V[token]), abs=1e-3)
            expected = sorted(enumerate(logps_V.tolist()), key=lambda pair: -pair[1])[:3]
            assert [token for token, _ in given_logprob.top] == [token for token, _ in expected]
            assert [value for _, value in given_logprob.top] == pytest.approx([value for _, value in expected], abs=1e-3)


def test_each_request_gets_as_many_alternatives_as_it_asked_for(engine: TransformersEngine) -> None:
    batch = ContinuousBatch(engine)
    for key, top in (("without", None), ("own", 0), ("three", 3)):
        batch.add(key, asked(0, max_tokens=5), top_logprobs=top)
    completions = run(batch, {})
    assert completions["without"].logprobs == []
    assert [len(logprob.top) for logprob in completions["own"].logprobs] == [0] * 5
    assert [len(logprob.top) for logprob in completions["three"].logprobs] == [3] * 5


def test_requests_without_room_are_refused_with_what_there_is(engine: TransformersEngine) -> None:
    batch = ContinuousBatch(engine)
    with pytest.raises(EngineError, match="the prompt is empty"):
        batch.add("empty", GenerationRequest([], 5, 0.0, 1.0, 0))
    with pytest.raises(EngineError, match="behind 1024 tokens of prompt and 0 of completion: the context is 1024"):
        batch.add("long", GenerationRequest([5] * 1024, 5, 0.0, 1.0, 0))
    with pytest.raises(EngineError, match="3 of completion: the context is 1024 and max_tokens 3"):
        batch.add("done", GenerationRequest([5], 3, 0.0, 1.0, 0), generated_token_ids=[7, 7, 7])
    assert batch.waiting == 0
    batch.add("one", GenerationRequest([5] * 1023, 5, 0.0, 1.0, 0))
    completion = run(batch, {})["one"]
    assert (len(completion.token_ids), completion.finish_reason) == (1, "length")


PIECES = ("a", "b", "<", "</", "think", "</think>", "think>", ">", "x</thi", "nk>\n", "</</")


@given(st.lists(st.sampled_from(range(len(PIECES))), max_size=14), st.integers(0, 10))
def test_a_watch_cuts_where_the_whole_text_would_be_cut(tokens: list[int], budget: int) -> None:
    """The completion ends with the first tag, or without one; what was still held at its end is over."""
    watch = ThinkingWatch(ThinkingLimit(budget, THINK_END, (0,)), dict(enumerate(PIECES)))
    thought = "inside"
    seen: list[int] = []
    for token in tokens:
        thought = watch.see(token)
        seen.append(token)
        if thought in ("ended", "over"):
            break
    whole = seen
    if thought == "over":
        # It is over whatever follows, up to the first tag.
        text = ""
        whole = []
        for token in tokens:
            text += PIECES[token]
            whole.append(token)
            if THINK_END in text:
                break
    expected = cut_at_budget([PIECES[token] for token in whole], THINK_END, budget)
    assert (thought in ("over", "held")) == (expected is not None)


def test_a_tag_in_several_tokens_that_begins_at_the_budget_ends_the_thinking_in_time() -> None:
    texts = dict(enumerate(PIECES))

    def thoughts(budget: int, pieces: Sequence[str]) -> list[str]:
        watch = ThinkingWatch(ThinkingLimit(budget, THINK_END, (0,)), texts)
        return [watch.see(PIECES.index(piece)) for piece in pieces]

    assert thoughts(2, ["a", "b", "</", "think", ">"]) == ["inside", "inside", "held", "held", "ended"]
    assert thoughts(2, ["a", "</", "think", ">"]) == ["inside", "inside", "held", "ended"]
    assert thoughts(2, ["a", "b", "</", "think", "a"])[2:] == ["held", "held", "over"]
    assert thoughts(2, ["a", "b", "a"]) == ["inside", "inside", "over"]
    assert thoughts(0, ["</think>"]) == ["ended"]


def test_a_tag_that_was_begun_behind_the_budget_and_not_ended_is_taken_back() -> None:
    """A model that always writes a, b, "</", "think", a, b, …: with two tokens of thinking, four are drawn to know."""
    following = {0: 1, 1: 3, 3: 4, 4: 0, 5: 9, 9: 1}
    engine = chain_engine(following)
    limit = ThinkingLimit(2, THINK_END, (5, 9))
    completion = complete(engine, GenerationRequest([4], 9, 0.0, 1.0, 0), thinking=limit, top_logprobs=0)
    assert completion.token_ids == [0, 1, 5, 9, 1, 3, 4, 0, 1]
    assert completion.thinking_closed
    # What the model writes by itself is nearly certain; what was forced is not.
    assert [logprob.logprob > -0.1 for logprob in completion.logprobs] == [
        True,
        True,
        False,
        True,
        True,
        True,
        True,
        True,
        True,
    ]


class _Pieces:
    """As much of a tokenizer as the batch asks for."""

    def decode(self, token_ids: list[int], **_: object) -> str:
        return "".join(PIECES[token] for token in token_ids)


def chain_engine(following: Mapping[int, int]) -> TransformersEngine:
    """A Llama that always writes `following[v]` behind token v: its one layer adds nothing to one-hot embeddings."""
    size = len(PIECES)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        rms_norm_eps=1e-12,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        layer: Any = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        head = torch.zeros(size, size)
        for token, successor in following.items():
            head[successor, token] = 10.0
        model.lm_head.weight.copy_(head)
    return TransformersEngine(
        model,
        eos_token_ids=frozenset(),
        context_length=64,
        max_batch_size=2,
        tokenizer=_Pieces(),  # type: ignore[arg-type]
    )
