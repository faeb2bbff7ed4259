"""The transformers engine: greedy against transformers' own `generate`, draws against the softmax they are drawn from.

`bigram_model` is a real model whose next-token logits are a table of our choice, so that expected draws are known exactly.
"""

import gc
import weakref
from collections.abc import Sequence
from operator import call
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.attention_kinds import positions_depend_on_batch, unserved_options
from tokensqueeze.engines.base import Generation, GenerationRequest
from tokensqueeze.engines.build import build_engine
from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.engines.packed_linear import PackedLinear
from tokensqueeze.engines.transformers_engine import TransformersEngine, _Row
from tokensqueeze.engines.trunks import Trunk, attend, attend_plainly, longest_extensions
from tokensqueeze.errors import EngineError

VOCABULARY = 41
CONTEXT = 64
EOS = 7
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
PIECES = ("<end>", "a", "b", "\n", "\n\n", ".\n\n", "</", "think", ">", "</think>\n\n", "é")


def random_model(kind: str, context: int = CONTEXT) -> PreTrainedModel:
    """A model with weights so large that the largest logit stands clear of what float32 rounds."""
    torch.manual_seed(1)
    large: dict[str, Any] = {"initializer_range": 0.4}
    match kind:
        case "qwen3":
            config = Qwen3Config(
                **SMALL, **large, num_key_value_heads=2, head_dim=8, max_position_embeddings=context, tie_word_embeddings=True
            )
            return Qwen3ForCausalLM(config).eval()
        case "llama":
            config = LlamaConfig(**SMALL, **large, num_key_value_heads=4, max_position_embeddings=context)
            return LlamaForCausalLM(config).eval()
        case _:
            config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=context, **large)
            return GPT2LMHeadModel(config).eval()


def bigram_model(logits_VV: torch.Tensor) -> PreTrainedModel:
    """A Llama whose logits behind token v are `logits_VV[v]`: its one layer adds nothing to one-hot embeddings."""
    size = len(logits_VV)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        rms_norm_eps=1e-12,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        layer: Any = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        # The norm makes a one-hot vector √V long.
        model.lm_head.weight.copy_(logits_VV.T / size**0.5)
    return model


def chain_model(following: Sequence[int]) -> PreTrainedModel:
    """A model that always writes `following[v]` behind token v."""
    return bigram_model(20.0 * torch.nn.functional.one_hot(torch.tensor(following), len(following)).float())


def piece_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(PIECES)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def engine_of(
    model: PreTrainedModel, *, slots: int = 4, eos: int = EOS, context: int = CONTEXT, with_tokenizer: bool = False
) -> TransformersEngine:
    return TransformersEngine(
        model,
        eos_token_ids=frozenset({eos}),
        context_length=context,
        max_batch_size=slots,
        tokenizer=piece_tokenizer() if with_tokenizer else None,
    )


def request(
    prompt: Sequence[int],
    max_tokens: int = 12,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_texts: tuple[str, ...] = (),
) -> GenerationRequest:
    return GenerationRequest(prompt, max_tokens, temperature, top_p, seed, stop_texts)


def mixed_requests(temperature: float) -> list[GenerationRequest]:
    """Prompts of one to eleven tokens, some twice, with limits from one token to thirty."""
    rng = np.random.default_rng(5)
    prompts = [rng.integers(8, VOCABULARY, size=length).tolist() for length in (1, 4, 11, 2, 7, 1, 9)]
    limits = (30, 3, 17, 1, 25, 8, 30)
    rows = [
        request(prompt, limit, temperature=temperature, seed=index)
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    return [*rows, request(prompts[4], 20, temperature=temperature, seed=90)]


def greedy_by_transformers(model: PreTrainedModel, asked: GenerationRequest) -> list[int]:
    prompt = torch.tensor([list(asked.prompt_token_ids)])
    return model.generate(  # type: ignore[operator]
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=asked.max_tokens,
        eos_token_id=EOS,
        pad_token_id=0,
    )[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_greedy_is_what_transformers_itself_generates(kind: str) -> None:
    model = random_model(kind)
    requests = mixed_requests(temperature=0)
    generations = engine_of(model, slots=3).generate(requests)
    for asked, generation in zip(requests, generations, strict=True):
        expected = greedy_by_transformers(model, asked)
        assert generation.token_ids == expected
        assert generation.finish_reason == ("stop" if expected[-1] == EOS else "length")


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_a_request_draws_the_same_tokens_in_any_company_and_batch_size(kind: str) -> None:
    model = random_model(kind)
    requests = mixed_requests(temperature=1.0)
    together = engine_of(model, slots=3).generate(requests)
    assert engine_of(model, slots=8).generate(requests) == together
    assert engine_of(model, slots=8).generate(requests[::-1]) == together[::-1]
    alone = engine_of(model, slots=1)
    assert [alone.generate([asked])[0] for asked in requests] == together
    # The draws do depend on the seed, or all of this would say nothing.
    assert together[4].token_ids[:20] != together[7].token_ids


def test_the_same_call_gives_the_same_tokens_whatever_the_engine_did_before() -> None:
    engine = engine_of(random_model("qwen3"), slots=3)
    requests = mixed_requests(temperature=1.0)
    first = engine.generate(requests)
    engine.generate([request(range(8, 40), 30, temperature=2.0, seed=index) for index in range(5)])
    assert engine.generate(requests) == first


def nested_requests(temperature: float, *, longest: int, draws: int, traces: int = 2) -> list[GenerationRequest]:
    """Several draws behind each of five prefixes of each trace, the traces' own in turns, and two prompts besides."""
    rng = np.random.default_rng(8)
    texts = [rng.integers(8, VOCABULARY, size=longest).tolist() for _ in range(traces)]
    lengths = [1, longest // 4, longest // 2, longest - 2, longest]
    prompts = [text[:length] for length in lengths for text in texts for _ in range(draws)]
    # One leaves the first trace midway, the other is a trace's own beginning once more, at the end of the call.
    prompts += [[*texts[0][: longest // 2], 9, 9], texts[0][: longest // 2]]
    return [request(prompt, 4 + seed % 9, temperature=temperature, seed=seed) for seed, prompt in enumerate(prompts)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_prefixes_of_one_trace_draw_together_what_each_draws_alone(kind: str, temperature: float) -> None:
    model = random_model(kind)
    requests = nested_requests(temperature, longest=40, draws=3)
    alone = engine_of(model, slots=1)
    expected = [alone.generate([asked])[0] for asked in requests]
    for slots in (1, 5, 64):
        assert engine_of(model, slots=slots).generate(requests) == expected


LONG = 160
"""With twenty draws behind each prefix and a hundred slots, rows share trunks."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_rows_that_share_long_trunks_draw_together_what_each_draws_alone(kind: str, temperature: float) -> None:
    model = random_model(kind, context=256)
    requests = nested_requests(temperature, longest=LONG, draws=20)
    together = engine_of(model, slots=100, context=256)
    generations = together.generate(requests)
    # The slots hold nothing of the trunks, or the rows would not have shared them.
    assert together._cache.keys[0].shape[2] < LONG
    alone = engine_of(model, slots=1, context=256)
    # Every seventh: some behind each prefix.
    assert generations[::7] == [alone.generate([asked])[0] for asked in requests[::7]]
    assert together.generate(requests) == generations
    if temperature == 0:
        for asked, generation in list(zip(requests, generations, strict=True))[::17]:
            assert generation.token_ids == greedy_by_transformers(model, asked)


def test_a_model_with_attention_of_its_own_kind_copies_trunks_and_draws_the_same() -> None:
    model = random_model("llama", context=256)
    requests = nested_requests(1.0, longest=LONG, draws=20)
    expected = engine_of(model, slots=100, context=256).generate(requests)
    model.set_attn_implementation("eager")
    copying = engine_of(model, slots=100, context=256)
    assert copying.generate(requests) == expected
    assert copying._cache.keys[0].shape[2] >= LONG


@pytest.mark.parametrize("draws", [3, 20])
def test_each_trace_is_read_once(draws: int) -> None:
    """With three draws rows copy trunks, with twenty they share them."""
    model = random_model("qwen3", context=256)
    read: list[int] = []

    def count(_module: Any, _arguments: Any, inputs: dict[str, Any]) -> None:
        if inputs["input_ids"].shape[1] > 1:
            read.append(inputs["input_ids"].numel())

    model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    engine_of(model, slots=100, context=256).generate(nested_requests(1.0, longest=LONG, draws=draws))
    # Two traces, and the prompt that leaves the first one midway; the last token of each is a row's first step.
    assert sum(read) <= 3 * (LONG - 1)


@pytest.mark.parametrize("draws", [1, 20])
def test_no_more_trunks_are_held_than_there_are_slots(draws: int) -> None:
    model = random_model("qwen3", context=256)
    slots, traces = 3 * draws, 12
    trunks: list[weakref.ref[Trunk]] = []
    held: list[int] = []

    def count(_module: Any, _arguments: Any, inputs: dict[str, Any]) -> None:
        if not trunks:
            trunks.extend(weakref.ref(thing) for thing in gc.get_objects() if type(thing) is Trunk)
        if inputs["input_ids"].shape[1] > 1:
            held.append(sum(1 for trunk in map(call, trunks) if trunk is not None and trunk.layers is not None))

    model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    engine = engine_of(model, slots=slots, context=256)
    engine.generate(nested_requests(1.0, longest=LONG, draws=draws, traces=traces))
    assert len(trunks) == traces + 1
    assert len(held) > 3
    # Three of a trace's five prefixes fill the slots, so a new trace is read beside the end of another one.
    assert max(held) <= min(slots, 4)


@given(
    st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), max_size=30),
)
def test_a_trunk_begins_with_its_prompt_and_begins_no_other_prompt(prompts: set[tuple[int, ...]]) -> None:
    extensions = longest_extensions(prompts)
    assert extensions.keys() == prompts
    for prompt, trunk in extensions.items():
        assert trunk[: len(prompt)] == prompt
        assert trunk in prompts
        assert not [other for other in prompts if len(other) > len(trunk) and other[: len(trunk)] == trunk]


def test_the_model_attends_in_its_own_way_again_after_a_call() -> None:
    model = random_model("llama", context=256)
    engine = engine_of(model, slots=100, context=256)
    requests = nested_requests(0.0, longest=LONG, draws=20)
    engine.generate(requests)
    assert model.config._attn_implementation == "sdpa"
    # No tokenizer: a stop text fails midway.
    with pytest.raises(EngineError, match="no tokenizer"):
        engine.generate([*requests, request([3], 5, stop_texts=("x",))])
    assert model.config._attn_implementation == "sdpa"
    assert engine.generate(requests[:1]) == engine_of(model).generate(requests[:1])


def test_attention_in_plain_steps_is_that_of_the_cpu_kernel() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 8)
    hidden = torch.zeros(2, 3, 5, 11).masked_fill_(torch.rand(2, 3, 5, 11) < 0.3, torch.finfo(torch.float32).min)
    for mask in (None, hidden):
        for scaling in (None, 0.7):
            seen, mass = attend_plainly(query, key, value, mask, scaling)
            expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
            torch.testing.assert_close(seen, expected)
            kernel_seen, kernel_mass = attend(query, key, value, mask, scaling)
            torch.testing.assert_close(kernel_seen, seen)
            torch.testing.assert_close(kernel_mass, mass)


def test_attention_in_plain_steps_multiplies_bfloat16_in_float32() -> None:
    torch.manual_seed(0)
    query, key, value = (4 * torch.randn(2, 3, rows, 8).to(torch.bfloat16) for rows in (5, 11, 11))
    seen, mass = attend_plainly(query, key, value, None, 1.0)
    scores = query.double() @ key.double().transpose(-1, -2)
    torch.testing.assert_close(mass.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-5)
    # Weights and values are bfloat16's.
    torch.testing.assert_close(seen.double(), scores.softmax(-1) @ value.double(), rtol=0.01, atol=0.05)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


def counts_of(generations: Sequence[Generation], size: int) -> np.ndarray:
    return np.bincount([generation.token_ids[0] for generation in generations], minlength=size)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_from_the_softmax_of_the_logits_over_the_temperature(temperature: float) -> None:
    logits = np.random.default_rng(3).normal(size=8)
    model = bigram_model(torch.tensor(np.tile(logits, (8, 1)), dtype=torch.float32))
    generations = engine_of(model, slots=500).generate(
        [request([2], 1, temperature=temperature, seed=seed) for seed in range(4000)]
    )
    # 99.9 % of samples from the right distribution stay below this at seven degrees of freedom.
    assert chi_square(counts_of(generations, 8), softmax(logits / temperature)) < 24.32


def test_one_request_draws_its_tokens_independently_of_each_other() -> None:
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    model = bigram_model(torch.tensor(np.tile(np.log(probabilities), (4, 1)), dtype=torch.float32))
    rows = [request([0], 60, temperature=1.0, seed=seed) for seed in range(40)]
    drawn = np.array([generation.token_ids for generation in engine_of(model, slots=40, eos=-1).generate(rows)])
    pairs = np.bincount((drawn[:, :-1] * 4 + drawn[:, 1:]).ravel(), minlength=16)
    # Fifteen degrees of freedom; successive pairs overlap, which at most widens the statistic a little.
    assert chi_square(pairs, np.outer(probabilities, probabilities).ravel()) < 50


def nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """A second implementation: take the most probable token until the mass is reached."""
    kept = np.zeros_like(probabilities)
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if kept.sum() >= top_p:
            break
        kept[token] = probabilities[token]
    return kept / kept.sum()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.8, 0.95])
def test_top_p_draws_from_the_fewest_tokens_that_reach_the_mass(top_p: float) -> None:
    logits = np.random.default_rng(11).normal(size=(3, 12)) * 1.5
    model = bigram_model(torch.tensor(np.vstack([logits, np.zeros((9, 12))]), dtype=torch.float32))
    for token in range(3):
        expected = nucleus(softmax(logits[token]), top_p)
        rows = [request([token], 1, temperature=1.0, top_p=top_p, seed=seed) for seed in range(1500)]
        counts = counts_of(engine_of(model, slots=500).generate(rows), 12)
        kept = expected > 0
        assert counts[~kept].sum() == 0
        # 99.9 % at eleven degrees of freedom, the most there can be here.
        assert chi_square(counts[kept], expected[kept]) < 31.26


def test_rows_of_one_batch_keep_their_own_temperature_and_top_p() -> None:
    probabilities = np.array([0.45, 0.3, 0.15, 0.1])
    model = bigram_model(torch.tensor(np.tile(np.log(probabilities), (4, 1)), dtype=torch.float32))
    kinds = [(0.0, 1.0), (1.0, 1.0), (1.0, 0.4), (1.0, 0.7)]
    rows = [request([0], 1, temperature=t, top_p=p, seed=seed) for seed in range(300) for t, p in kinds]
    tokens = [generation.token_ids[0] for generation in engine_of(model, slots=64, eos=-1).generate(rows)]
    assert [set(tokens[kind::4]) for kind in range(4)] == [{0}, {0, 1, 2, 3}, {0}, {0, 1}]


def test_a_stop_text_ends_a_completion_with_the_token_that_completes_it() -> None:
    # a → b → "\n" → "\n" → …
    model = chain_model([0, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0])
    engine = engine_of(model, eos=0, with_tokenizer=True)
    spread = engine.generate([request([1], 30, stop_texts=("\n\n", "</think>"))])[0]
    assert spread == Generation([2, 3, 3], "stop")


def test_a_stop_text_is_found_inside_a_token_and_over_three() -> None:
    # a → b → ".\n\n" → a …; "</" → "think" → ">" → a …
    model = chain_model([0, 2, 5, 1, 1, 1, 7, 8, 1, 1, 1])
    engine = engine_of(model, eos=0, with_tokenizer=True)
    rows = [
        request([1], 30, stop_texts=("\n\n",)),
        request([6], 30, stop_texts=("think>",)),
        request([6], 6, stop_texts=("</think>",)),
        request([1], 30, stop_texts=("b.",)),
    ]
    assert engine.generate(rows) == [
        Generation([2, 5], "stop"),
        Generation([7, 8], "stop"),
        # The first half of this tag stands in the prompt, so the completion never holds it.
        Generation([7, 8, 1, 2, 5, 1], "length"),
        Generation([2, 5], "stop"),
    ]


def test_a_stop_text_needs_a_tokenizer() -> None:
    engine = engine_of(chain_model([1, 2, 3, 0]))
    with pytest.raises(EngineError, match="no tokenizer"):
        engine.generate([request([1], 5, stop_texts=("\n\n",))])


def test_a_completion_that_ends_itself_on_its_last_token_has_stopped() -> None:
    engine = engine_of(chain_model([1, 2, 3, 0, 0]), eos=3)
    rows = [request([0], 3), request([0], 2), request([0], 9)]
    assert engine.generate(rows) == [
        Generation([1, 2, 3], "stop"),
        Generation([1, 2], "length"),
        Generation([1, 2, 3], "stop"),
    ]


def test_a_completion_ends_where_the_context_does() -> None:
    engine = engine_of(random_model("llama"), eos=-1, context=10)
    generations = engine.generate([request(range(9), 50), request(range(3), 50), request([4], 2)])
    assert [len(generation.token_ids) for generation in generations] == [1, 7, 2]
    assert {generation.finish_reason for generation in generations} == {"length"}


def test_no_requests_give_no_generations() -> None:
    assert engine_of(random_model("qwen3")).generate([]) == []


def test_a_prompt_without_room_or_without_tokens_is_named() -> None:
    engine = engine_of(random_model("qwen3"), context=10)
    with pytest.raises(EngineError, match=r"request 1: its prompt has 10 tokens and the model's context 10; shorten"):
        engine.generate([request([1, 2]), request(range(10))])
    with pytest.raises(EngineError, match="request 0: its prompt is empty"):
        engine.generate([request([])])


def test_models_that_see_a_part_of_the_context_are_refused() -> None:
    some_layers = Qwen2Config(
        **SMALL,
        num_key_value_heads=4,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
        max_position_embeddings=64,
    )
    with pytest.raises(EngineError, match=r'qwen2: layers of type sliding_attention .* engine\.kind = "vllm"'):
        engine_of(Qwen2ForCausalLM(some_layers))
    all_layers = MistralConfig(**SMALL, num_key_value_heads=4, sliding_window=8, max_position_embeddings=64)
    with pytest.raises(EngineError, match="mistral: layers of type sliding_attention"):
        engine_of(MistralForCausalLM(all_layers))


def phi3_config(*, original: int, rope_type: str = "longrope") -> Phi3Config:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4} if rope_type == "longrope" else {}
    return Phi3Config(
        **SMALL,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=original,
        rope_parameters={"rope_type": rope_type, "rope_theta": 10_000.0, **factors},
        pad_token_id=0,
        eos_token_id=EOS,
        initializer_range=0.4,
    )


def test_a_model_whose_positions_depend_on_the_batch_is_refused() -> None:
    torch.manual_seed(1)
    model = Phi3ForCausalLM(phi3_config(original=16)).eval()
    with pytest.raises(EngineError, match=r'phi3: its rotary positions \(longrope\) .* engine\.kind = "vllm"'):
        engine_of(model)
    # Beside a row that passes 16 tokens, a short row's logits do change.
    short, padding = torch.arange(8, 14)[None], torch.zeros(1, 12, dtype=torch.long)
    with torch.no_grad():
        alone, beside = model(input_ids=short).logits, model(input_ids=torch.cat([short, padding], dim=1)).logits[:, :6]
    assert (alone - beside).abs().max() > 0.1


def test_positions_depend_on_the_batch_only_where_longrope_goes_beyond_its_first_length() -> None:
    assert positions_depend_on_batch(phi3_config(original=16))
    assert not positions_depend_on_batch(phi3_config(original=CONTEXT))
    assert not positions_depend_on_batch(phi3_config(original=16, rope_type="default"))
    assert not any(positions_depend_on_batch(random_model(kind).config) for kind in ("qwen3", "llama", "gpt2"))


def test_longrope_of_one_layer_type_makes_positions_depend_on_the_batch() -> None:
    config = LlamaConfig(**SMALL, max_position_embeddings=CONTEXT)
    own = {"rope_type": "longrope", "original_max_position_embeddings": 16}
    config.rope_parameters = {"full_attention": own, "sliding_attention": {"rope_type": "default"}}
    assert positions_depend_on_batch(config)
    config.rope_parameters = {"full_attention": {**own, "original_max_position_embeddings": CONTEXT}}
    assert not positions_depend_on_batch(config)
    config.rope_parameters = None
    config.rope_scaling = {"type": "longrope", "original_max_position_embeddings": 16}
    assert positions_depend_on_batch(config)


def test_attention_options_that_change_scores_are_named() -> None:
    assert unserved_options({"softcap": 30.0, "s_aux": torch.zeros(1), "position_bias": None, "sliding_window": 4}) == [
        "softcap",
        "s_aux",
    ]
    assert unserved_options({"dropout": 0.0}) == []


@pytest.mark.parametrize("slots", [1, 3])
def test_random_numbers_are_held_for_rows_in_the_batch_alone(slots: int) -> None:
    model = random_model("llama")
    held: list[int] = []
    # What is there already can't be a row of this batch, and there is much of it to look through.
    gc.freeze()

    def count(*_: Any) -> None:
        held.append(sum(1 for thing in gc.get_objects() if type(thing) is _Row and thing.uniforms is not None))

    model.base_model.register_forward_hook(count)
    try:
        engine_of(model, slots=slots).generate(mixed_requests(temperature=1.0))
    finally:
        gc.unfreeze()
    assert max(held) == slots


def test_a_window_as_wide_as_the_context_is_none() -> None:
    for window in (None, 64):
        config = MistralConfig(**SMALL, num_key_value_heads=4, sliding_window=window, max_position_embeddings=64)
        assert len(engine_of(MistralForCausalLM(config).eval(), eos=-1).generate([request([1, 2, 3], 4)])[0].token_ids) == 4


def test_large_layers_are_packed_and_draw_what_transformers_itself_generates(tmp_path: Path) -> None:
    torch.manual_seed(2)
    wide = {**SMALL, "hidden_size": 512, "intermediate_size": 700}
    config = LlamaConfig(
        **wide, num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.1, eos_token_id=EOS, mlp_bias=True
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    piece_tokenizer().save_pretrained(tmp_path)
    engine = TransformersEngine.load(tmp_path, dtype=torch.float32, device="cpu", max_batch_size=3)
    packed = {name.split(".")[-1] for name, layer in engine.model.named_modules() if isinstance(layer, PackedLinear)}
    # 512 × 512 and 512 × 700 weights; the keys' and values' 512 × 256 and the head's 512 × 41 are few.
    assert packed == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    requests = mixed_requests(temperature=0)
    for asked, generation in zip(requests, engine.generate(requests), strict=True):
        assert generation.token_ids == greedy_by_transformers(model, asked)


def test_an_engine_is_built_from_a_model_directory() -> None:
    engine = build_engine(demo_model_dir(), EngineSettings(max_batch_size=2), "auto")
    assert isinstance(engine, TransformersEngine)
    assert (engine.model.dtype, engine.context_length, engine.max_batch_size) == (torch.float32, 1024, 2)
    assert engine.deterministic
