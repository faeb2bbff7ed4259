"""vLLM against transformers on the same weights, on a CPU; `make test-vllm` makes the environment for it."""

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.base import GenerationRequest
from tokensqueeze.engines.checkpoint import demo_model_dir, load_model, load_tokenizer
from tokensqueeze.engines.transformers_engine import TransformersEngine
from tokensqueeze.engines.vllm_engine import VLLMEngine
from tokensqueeze.errors import EngineError

pytest.importorskip("vllm", reason="vLLM can't be imported here; `make test-vllm` runs this in an environment that has it")
pytestmark = pytest.mark.vllm

SETTINGS = EngineSettings.model_validate({"kind": "vllm", "max_batch_size": 16})
QUESTIONS = [
    "Mia has 12 pens. Mia buys 7 pens. How many pens does Mia have now?",
    "Tom has 40 cards. Tom gives away 15 cards, then loses 3. How many cards are left?",
    "A box holds 6 rows of 9 apples. 4 apples are eaten. How many apples are left?",
]

# The chain model's vocabulary, and which token follows which; it can say nothing else.
TOKENS = [*"abcdefghijklmnopqrstuvwxyz", "\n", ".\n\n", "<mark>", "<end>"]
CHAIN = {
    "a": "b", "b": ".\n\n", ".\n\n": "c", "c": "d", "d": "c",
    "e": "f", "f": "\n", "\n": "<mark>", "<mark>": "g", "g": "\n",
    "h": "i", "i": "j", "j": "<end>",
}  # fmt: skip
CHAIN_CONTEXT = 64


@pytest.fixture(scope="module")
def demo_engine() -> VLLMEngine:
    return VLLMEngine(demo_model_dir(), SETTINGS, "auto")


@pytest.fixture(scope="module")
def chain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain_model")
    save_chain_model(folder)
    return folder


@pytest.fixture(scope="module")
def chain_engine(chain_dir: Path) -> VLLMEngine:
    return VLLMEngine(chain_dir, SETTINGS, "float32")


def test_greedy_tokens_equal_those_of_transformers_generate(demo_engine: VLLMEngine):
    prompts = [demo_prompt(question) for question in QUESTIONS]
    model = load_model(demo_model_dir(), torch.float32)
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=200, do_sample=False)[0, len(prompt) :].tolist()  # type: ignore[operator]
        for prompt in prompts
    ]
    generations = demo_engine.generate([greedy(prompt, max_tokens=200) for prompt in prompts])
    assert [generation.token_ids for generation in generations] == expected
    end = load_tokenizer(demo_model_dir()).eos_token_id
    for generation in generations:
        assert generation.finish_reason == ("stop" if generation.token_ids[-1] == end else "length")


def test_greedy_tokens_up_to_a_stop_text_equal_those_of_the_transformers_engine(demo_engine: VLLMEngine):
    requests = [greedy(demo_prompt(question), max_tokens=80, stop_texts=("\n\n",)) for question in QUESTIONS]
    other = TransformersEngine.load(demo_model_dir(), dtype=torch.float32, device="cpu", max_batch_size=4)
    generations = demo_engine.generate(requests)
    assert generations == other.generate(requests)
    text = load_tokenizer(demo_model_dir()).decode(generations[0].token_ids)
    assert isinstance(text, str)
    assert text.endswith("\n\n") and text.count("\n\n") == 1


def test_seeds_give_different_draws(demo_engine: VLLMEngine):
    prompt = demo_prompt(QUESTIONS[1])
    generations = demo_engine.generate([sampled(prompt, seed=seed) for seed in (1, 2, 3, 2**63 - 1)])
    assert len({tuple(generation.token_ids) for generation in generations}) == 4


def test_one_seed_gives_the_same_draw_again(demo_engine: VLLMEngine):
    request = sampled(demo_prompt(QUESTIONS[1]), seed=7)
    assert demo_engine.generate([request]) == demo_engine.generate([request])


def test_seeded_draws_behind_more_prompt_tokens_than_one_step_reads(demo_engine: VLLMEngine):
    start = demo_prompt(QUESTIONS[2])
    requests = [sampled(start * (700 // len(start)) + [40 + index], seed=index, max_tokens=3) for index in range(16)]
    assert sum(len(request.prompt_token_ids) for request in requests) > 2 * 4096
    assert all(1 <= len(generation.token_ids) <= 3 for generation in demo_engine.generate(requests))


def test_draws_follow_the_models_distribution(demo_engine: VLLMEngine):
    prompt, temperature, draws = demo_prompt(QUESTIONS[0]), 1.5, 600
    with torch.inference_mode():
        logits = load_model(demo_model_dir(), torch.float32)(torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1)
    requests = [sampled(prompt, seed=seed, temperature=temperature, max_tokens=1) for seed in range(draws)]
    drawn = torch.tensor([generation.token_ids[0] for generation in demo_engine.generate(requests)])
    for token in expected.topk(3).indices.tolist():
        share, probability = (drawn == token).float().mean().item(), expected[token].item()
        # Five standard errors of a share of independent draws.
        assert abs(share - probability) < 5 * (probability * (1 - probability) / draws) ** 0.5 + 1e-9


def test_a_token_that_holds_more_than_the_stop_text_ends_the_completion_and_is_kept(chain_engine: VLLMEngine):
    (generation,) = chain_engine.generate([greedy(ids("a"), max_tokens=20, stop_texts=("\n\n",))])
    assert (generation.token_ids, generation.finish_reason) == (ids("b", ".\n\n"), "stop")


def test_a_stop_text_spread_over_tokens_ends_the_completion_at_its_last_token(chain_engine: VLLMEngine):
    (generation,) = chain_engine.generate([greedy(ids("e"), max_tokens=20, stop_texts=("zz", "\n<mark>g"))])
    assert (generation.token_ids, generation.finish_reason) == (ids("f", "\n", "<mark>", "g"), "stop")


def test_a_special_token_keeps_the_halves_of_a_stop_text_apart(chain_engine: VLLMEngine):
    (generation,) = chain_engine.generate([greedy(ids("e"), max_tokens=5, stop_texts=("\ng",))])
    assert (generation.token_ids, generation.finish_reason) == (ids("f", "\n", "<mark>", "g", "\n"), "length")


def test_the_end_token_ends_the_completion_and_is_kept(chain_engine: VLLMEngine):
    (generation,) = chain_engine.generate([greedy(ids("h"), max_tokens=20)])
    assert (generation.token_ids, generation.finish_reason) == (ids("i", "j", "<end>"), "stop")


def test_the_token_limit_ends_the_completion(chain_engine: VLLMEngine):
    (generation,) = chain_engine.generate([greedy(ids("c"), max_tokens=3)])
    assert (generation.token_ids, generation.finish_reason) == (ids("d", "c", "d"), "length")


def test_a_stop_text_that_completes_on_the_last_allowed_token_is_a_stop(chain_engine: VLLMEngine):
    (generation,) = chain_engine.generate([greedy(ids("a"), max_tokens=2, stop_texts=("\n\n",))])
    assert (generation.token_ids, generation.finish_reason) == (ids("b", ".\n\n"), "stop")


def test_both_engines_agree_on_where_the_chain_model_stops(chain_engine: VLLMEngine, chain_dir: Path):
    other = TransformersEngine.load(chain_dir, dtype=torch.float32, device="cpu", max_batch_size=4)
    requests = [
        greedy(ids(first), max_tokens=max_tokens, stop_texts=stop_texts)
        for first in "abceh"
        for max_tokens in (1, 2, 4, 100)
        for stop_texts in ((), ("\n\n",), ("\ng", "d"), (".\n\nc",))
    ]
    assert chain_engine.generate(requests) == other.generate(requests)


def test_a_completion_ends_where_the_context_does(chain_engine: VLLMEngine):
    (generation,) = chain_engine.generate([greedy(ids("c", "d") * 30, max_tokens=500)])
    assert (len(generation.token_ids), generation.finish_reason) == (CHAIN_CONTEXT - 60, "length")


def test_generations_stand_in_the_requests_order(chain_engine: VLLMEngine):
    firsts = ["a", "e", "h", "c"] * 8  # twice the batch
    generations = chain_engine.generate([greedy(ids(first), max_tokens=1) for first in firsts])
    assert [generation.token_ids for generation in generations] == [ids(CHAIN[first]) for first in firsts]


def test_a_prompt_with_no_room_left_is_named(chain_engine: VLLMEngine):
    requests = [greedy(ids("a"), max_tokens=5), greedy(ids("a") * CHAIN_CONTEXT, max_tokens=5)]
    with pytest.raises(EngineError, match=r"request 1: its prompt has 64 tokens and the model's context 64"):
        chain_engine.generate(requests)


def test_an_empty_prompt_is_named(chain_engine: VLLMEngine):
    with pytest.raises(EngineError, match="request 0: its prompt is empty"):
        chain_engine.generate([greedy([], max_tokens=5)])


def test_no_requests_give_no_generations(chain_engine: VLLMEngine):
    assert chain_engine.generate([]) == []


def test_a_model_that_vllm_cannot_load_is_an_engine_error(chain_dir: Path, tmp_path: Path):
    for path in chain_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(EngineError, match="vLLM could not start"):
        VLLMEngine(tmp_path, SETTINGS, "float32")


def demo_prompt(question: str) -> list[int]:
    tokenizer = load_tokenizer(demo_model_dir())
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False).input_ids  # type: ignore[arg-type]


def greedy(prompt: list[int], *, max_tokens: int, stop_texts: tuple[str, ...] = ()) -> GenerationRequest:
    return GenerationRequest(prompt, max_tokens=max_tokens, temperature=0, top_p=1, seed=0, stop_texts=stop_texts)


def sampled(prompt: list[int], *, seed: int, temperature: float = 1.0, max_tokens: int = 80) -> GenerationRequest:
    return GenerationRequest(prompt, max_tokens=max_tokens, temperature=temperature, top_p=1, seed=seed)


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def save_chain_model(folder: Path) -> None:
    """Save a Qwen3 whose greedy continuation is known by hand: a token's successor in CHAIN has the largest logit.

    Attention and MLP add nothing, so the last hidden state is the normed embedding of the last token alone; the output
    row of a token is the sum of its predecessors' embeddings, which are one-hot.
    """
    tokenizer = Tokenizer(models.BPE(vocab={spelled(t): i for i, t in enumerate(TOKENS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<mark>", "<end>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    assert [fast.decode([i]) for i in range(len(fast))] == TOKENS
    fast.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CHAIN_CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=TOKENS.index("<end>"),
        pad_token_id=TOKENS.index("<end>"),
    )
    model = Qwen3ForCausalLM(config)
    weights = model.state_dict()
    weights["model.layers.0.self_attn.o_proj.weight"].zero_()
    weights["model.layers.0.mlp.down_proj.weight"].zero_()
    weights["model.embed_tokens.weight"].copy_(torch.eye(len(TOKENS), 64))
    weights["lm_head.weight"].zero_()
    for token, successor in CHAIN.items():
        weights["lm_head.weight"][TOKENS.index(successor), TOKENS.index(token)] = 1.0
    model.generation_config = GenerationConfig(eos_token_id=TOKENS.index("<end>"), pad_token_id=TOKENS.index("<end>"))
    model.save_pretrained(folder)


def spelled(token: str) -> str:
    """Return a token as byte-level BPE spells it."""
    return token.replace("\n", "Ċ")
