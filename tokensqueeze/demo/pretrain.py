"""Make the embedded model from nothing, in one reproducible run: tokenizer, pre-training data, weights.

    python -m tokensqueeze.demo.pretrain OUT_DIR [--steps N]

A four-layer Qwen3 model of 0.85 M parameters, trained on traces of `demo.world` with Muon on the matrices and AdamW on the
rest. Only problems of the train split are seen. Seeds, order and step count are fixed; one thread.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, IterableDataset
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tokensqueeze.demo import world

STEPS = 5000
BATCH_TOKENS = 4096
MAX_TOKENS = 400
MATRIX_LR, OTHER_LR = 4e-3, 3e-3
WARMUP_STEPS = 60
DECAY_FROM = 0.4
"""The share of the run after which the learning rate falls linearly; most of the accuracy comes in the decay."""
IGNORED = -100

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer(seed=arguments.seed)
    tokenizer.save_pretrained(arguments.out_dir)  # first: the data worker reads it from there
    model = new_model(tokenizer)
    pretrain(model, arguments.out_dir, steps=arguments.steps, seed=arguments.seed)
    model.bfloat16().save_pretrained(arguments.out_dir)


def train_tokenizer(*, seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 514 entries in which a step boundary is always a token boundary.

    The pre-split keeps a space with the digit after it (else traces grow by half); the delimiter is a token of its own.
    """
    rng = random.Random(seed)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=513,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [f"user\n{problem.question}\nassistant\n{_trace_text(rng, problem)}" for problem in _train_problems(rng, 4000)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(world.STEP_DELIMITER, normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<think>", "</think>"],
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_id_of(tokenizer, "<|im_end|>"),
        pad_token_id=_id_of(tokenizer, "<|endoftext|>"),
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    return model


def _id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return tokenizer.get_vocab()[token]


def pretrain(model: Qwen3ForCausalLM, tokenizer_dir: Path, *, steps: int, seed: int) -> None:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        (torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"), MATRIX_LR),
        (torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.0), OTHER_LR),
    ]
    batches = DataLoader(
        TraceBatches(tokenizer_dir, steps=steps, seed=seed), batch_size=None, num_workers=1, prefetch_factor=16
    )
    started, smoothed, tokens = time.monotonic(), None, 0
    model.train()
    for index, batch in enumerate(batches):
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = peak * _lr_factor(index, steps)
        kept = batch.labels[:, 1:] != IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(batch.input_ids).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][kept])
        loss = F.cross_entropy(logits.float(), batch.labels[:, 1:][kept])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        tokens += int(kept.sum())
        smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
        if (index + 1) % 50 == 0:
            rate = (index + 1) / (time.monotonic() - started)
            left = (steps - index - 1) / rate
            print(
                f"step {index + 1}/{steps}  loss {smoothed:.4f}  {tokens / 1e6:.2f} M tokens  {left:.0f} s left",
                flush=True,
            )


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor
    labels: torch.Tensor


class TraceBatches(IterableDataset[Batch]):
    """Batches of traces and drills of about equal length, about 4 k tokens each; the drills' share falls half-way."""

    def __init__(self, tokenizer_dir: Path, *, steps: int, seed: int):
        self.tokenizer_dir, self.steps, self.seed = tokenizer_dir, steps, seed

    def __iter__(self) -> Iterator[Batch]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.tokenizer_dir)
        rng = random.Random(self.seed)
        made = 0
        while True:
            drill_share = 0.5 if made < self.steps / 2 else 0.2
            pool = [self._example(rng, tokenizer, drill_share) for _ in range(800)]
            batches = _batches_of_like_length(pool)
            rng.shuffle(batches)
            for batch in batches:
                if made == self.steps:
                    return
                made += 1
                yield _pad(batch, _id_of(tokenizer, "<|endoftext|>"))

    def _example(self, rng: random.Random, tokenizer: PreTrainedTokenizerFast, drill_share: float) -> tuple[list[int], int]:
        if rng.random() < drill_share:
            prompt = "<|im_start|>assistant\n<think>\n"
            text = world.STEP_DELIMITER.join(world.drill(rng))
        else:
            (problem,) = _train_problems(rng, 1)
            messages = [{"role": "user", "content": problem.question}]
            prompt = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
            text = _trace_text(rng, problem)
        ids = tokenizer(prompt + text + "<|im_end|>").input_ids
        return ids[:MAX_TOKENS], len(tokenizer(prompt).input_ids)


def _train_problems(rng: random.Random, count: int) -> list[world.DemoProblem]:
    return [world.draw_problem(rng, "train") for _ in range(count)]


def _trace_text(rng: random.Random, problem: world.DemoProblem) -> str:
    return world.completion(world.verbose_trace(rng, problem), problem.answer)


def _batches_of_like_length(pool: list[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
    batches, current = [], []
    for example in sorted(pool, key=lambda example: len(example[0])):
        if current and (len(current) + 1) * len(example[0]) > BATCH_TOKENS:
            batches.append(current)
            current = []
        current.append(example)
    return [*batches, current]


def _pad(examples: list[tuple[list[int], int]], pad_token_id: int) -> Batch:
    longest = max(len(ids) for ids, _ in examples)
    input_ids = torch.full((len(examples), longest), pad_token_id)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, (ids, prompt_length) in enumerate(examples):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
    return Batch(input_ids, labels)


def _lr_factor(step: int, steps: int) -> float:
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    done = step / steps
    return warmup * (1.0 if done < DECAY_FROM else max(0.02, (1 - done) / (1 - DECAY_FROM)))


if __name__ == "__main__":
    main()
