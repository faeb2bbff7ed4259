"""Generation with transformers, on a CPU or a GPU: a batch of slots, where a row that finishes gives its place to the next.

Prompts that begin one another, such as those of one trace's steps, are read once, as the longest of them: their trunk. Where
many rows stand on long trunks, they attend to the one copy of a trunk's keys and values, and to their own tokens separately.

Which rows share a batch follows from the requests' order alone, and each row draws from a random stream of its own, so the
same call gives the same tokens on any worker.

Shapes: B rows in the batch, N of them on one trunk, T trunks, P trunk tokens, S tokens of a slot, V vocabulary, H key/value
heads, R query heads to each, D head size.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache

from tokensqueeze.engines.attention_kinds import partial_attention, positions_depend_on_batch
from tokensqueeze.engines.base import Generation, GenerationRequest, distinct_prompts
from tokensqueeze.engines.checkpoint import context_length, eos_token_ids, load_model, load_tokenizer
from tokensqueeze.engines.packed_linear import pack_linear_layers
from tokensqueeze.engines.sampling import draw
from tokensqueeze.engines.slot_cache import SlotCache, next_token_logits
from tokensqueeze.engines.trunks import KeysValues, Trunk, TrunkUse, attention_to_trunks, can_share_trunks, longest_extensions
from tokensqueeze.errors import EngineError
from tokensqueeze.schema import FinishReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PREFILL_TOKENS = 16_384
"""Padded trunk tokens per forward pass."""
_SPARED_TOKENS = 4096
"""Tokens of keys and values a trunk must spare each step, before rows share it: every trunk in use costs a step extra time."""


class TransformersEngine:
    """A causal LM whose layers all attend to the whole context; the model is used as it is, in its own dtype and place."""

    deterministic = True

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        eos_token_ids: frozenset[int],
        context_length: int,
        max_batch_size: int = 64,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
    ):
        partial = partial_attention(model.config)
        if partial:
            raise EngineError(
                f"{model.config.model_type}: layers of type {', '.join(partial)} are not served by the transformers engine; "
                'set engine.kind = "vllm"'
            )
        if positions_depend_on_batch(model.config):
            raise EngineError(
                f"{model.config.model_type}: its rotary positions (longrope) would depend on the longest row of a batch, so "
                'the transformers engine can\'t serve it; set engine.kind = "vllm"'
            )
        self.model, self.tokenizer = model, tokenizer
        self.eos_token_ids, self.context_length, self.max_batch_size = eos_token_ids, context_length, max_batch_size
        # Kept from call to call: fresh memory costs more than the arithmetic on it.
        self._cache = SlotCache(max_batch_size, model.device)
        self._token_texts: list[str] | None = None

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: str, max_batch_size: int) -> "TransformersEngine":
        model = load_model(folder, dtype).to(device)  # type: ignore[arg-type]
        pack_linear_layers(model, max_batch_size)
        return cls(
            model,
            eos_token_ids=eos_token_ids(folder),
            context_length=context_length(folder),
            max_batch_size=max_batch_size,
            tokenizer=load_tokenizer(folder),
        )

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        rows = [self._admit(index, request) for index, request in enumerate(requests)]
        waiting = deque(_plant(rows))
        shared = can_share_trunks(self.model) and _sharing_pays(rows, self.max_batch_size)
        with attention_to_trunks(self.model) if shared else nullcontext():
            batch = _Batch(self.model, self._cache, shared=shared)
            while waiting or batch.rows:
                free = batch.slots - len(batch.rows)
                # Trunks are read several at a time; until then, the batch runs on, smaller.
                if waiting and (free >= max(1, batch.slots // 8) or not batch.rows):
                    batch.add([waiting.popleft() for _ in range(min(free, len(waiting)))])
                for row, token in zip(batch.rows, batch.step(), strict=True):
                    self._append(row, token)
                batch.drop_finished()
        return [Generation(row.token_ids, row.finish_reason or "length") for row in rows]

    def _admit(self, index: int, request: GenerationRequest) -> "_Row":
        room = self.context_length - len(request.prompt_token_ids)
        if room < 1:
            raise EngineError(
                f"request {index}: its prompt has {len(request.prompt_token_ids)} tokens and the model's context "
                f"{self.context_length}; shorten the prompt"
            )
        if not request.prompt_token_ids:
            raise EngineError(f"request {index}: its prompt is empty; a completion needs at least one token to follow")
        return _Row(request, max_tokens=min(request.max_tokens, room))

    def _append(self, row: "_Row", token: int) -> None:
        row.token_ids.append(token)
        if token in self.eos_token_ids or (row.request.stop_texts and self._completes_stop_text(row, token)):
            row.finish_reason = "stop"
        elif len(row.token_ids) >= row.max_tokens:
            row.finish_reason = "length"

    def _completes_stop_text(self, row: "_Row", token: int) -> bool:
        text = row.tail + self._text_of(token)
        row.tail = text[-max(len(stop_text) for stop_text in row.request.stop_texts) :]
        # A stop text that ended before this token would have ended the row.
        return any(stop_text in text for stop_text in row.request.stop_texts)

    def _text_of(self, token: int) -> str:
        if self._token_texts is None:
            if self.tokenizer is None:
                raise EngineError("a request has a stop text, and the engine was given no tokenizer to find it with")
            self._token_texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        return self._token_texts[token] if token < len(self._token_texts) else ""


@dataclass(eq=False)
class _Row:
    request: GenerationRequest
    max_tokens: int
    trunk: Trunk | None = None
    """Held as long as the row needs it; what no row holds is freed."""
    token_ids: list[int] = field(default_factory=list)
    tail: str = ""
    """The end of the text so far, in which a stop text may have begun."""
    finish_reason: FinishReason | None = None
    uniforms: np.ndarray | None = None
    """The row's own random stream, one number per token; held while it is drawn for, not while it waits."""

    def next_uniform(self) -> float:
        if self.uniforms is None:
            self.uniforms = np.random.Generator(np.random.Philox(key=self.request.seed)).random(self.max_tokens)
        return float(self.uniforms[len(self.token_ids)])

    @property
    def prefix_length(self) -> int:
        """Tokens of the prompt that its trunk has read for it: all but the last, which the row's first step reads."""
        return len(self.request.prompt_token_ids) - 1


def _plant(rows: Sequence[_Row]) -> list[_Row]:
    """Give each row its trunk, and return the rows trunk by trunk, so that few trunks are held at once."""
    tuples = {key: tuple(prompt) for key, prompt in distinct_prompts([row.request for row in rows]).items()}
    prompts = [tuples[id(row.request.prompt_token_ids)] for row in rows]
    extensions = longest_extensions(set(prompts))
    # In the order of the trunks' first rows.
    trunks: dict[tuple[int, ...], tuple[Trunk, list[_Row]]] = {}
    for row, prompt in zip(rows, prompts, strict=True):
        trunk_ids = extensions[prompt]
        row.trunk, own = trunks.setdefault(trunk_ids, (Trunk(trunk_ids), []))
        own.append(row)
    return [row for _, own in trunks.values() for row in own]


def _sharing_pays(rows: Sequence[_Row], slots: int) -> bool:
    """Whether rows attend to trunks faster than to copies of them: many rows at once on each, and long prefixes."""
    if not rows:
        return False
    rows_per_trunk = min(slots, len(rows) / len({row.trunk for row in rows}))
    mean_prefix = sum(row.prefix_length for row in rows) / len(rows)
    return (rows_per_trunk - 1) * mean_prefix >= _SPARED_TOKENS


class _Batch:
    """The rows in flight; row b lives in slot b of the cache, without gaps.

    A slot holds a row's whole past, or, where trunks are `shared`, what follows the row's prefix.
    """

    def __init__(self, model: "PreTrainedModel", cache: SlotCache, *, shared: bool):
        self.model, self.cache, self.slots, self.shared = model, cache, cache.slots, shared
        self.rows: list[_Row] = []
        self.lengths = torch.zeros(self.slots, dtype=torch.long, device=model.device)
        """Tokens in each slot."""
        self.offsets = torch.zeros_like(self.lengths)
        """Tokens of each row's past that its trunk holds, not its slot."""
        self.last_tokens = torch.zeros_like(self.lengths)
        self._uses: list[TrunkUse] | None = None

    def add(self, rows: Sequence[_Row]) -> None:
        """Have the rows' prompts read, all but the last token, which the first step reads."""
        new = slice(len(self.rows), len(self.rows) + len(rows))
        unread = dict.fromkeys(row.trunk for row in rows if row.trunk and row.trunk.layers is None)
        for chunk in _chunks_of_tokens(list(unread), _PREFILL_TOKENS):
            self._read(chunk)
        prefixes_B = torch.tensor([row.prefix_length for row in rows], device=self.lengths.device)
        self.lengths[new] = 0 if self.shared else prefixes_B
        self.offsets[new] = prefixes_B if self.shared else 0
        self.last_tokens[new] = torch.tensor([row.request.prompt_token_ids[-1] for row in rows], device=self.lengths.device)
        if not self.shared:
            self._copy_trunks(rows, new.start)
        self.rows.extend(rows)
        self._uses = None

    def _read(self, trunks: "Sequence[Trunk]") -> None:
        longest = max(len(trunk.token_ids) for trunk in trunks) - 1
        if longest == 0:
            for trunk in trunks:
                trunk.layers = []
            return
        # Padding stands on the right, where causal attention never looks back at it.
        ids_TP = torch.zeros(len(trunks), longest, dtype=torch.long)
        for index, trunk in enumerate(trunks):
            ids_TP[index, : len(trunk.token_ids) - 1] = torch.tensor(trunk.token_ids[:-1])
        read = DynamicCache()
        more: dict[str, Any] = {"trunk_uses": ()} if self.shared else {}
        self.model.base_model(input_ids=ids_TP.to(self.model.device), past_key_values=read, use_cache=True, **more)
        for index, trunk in enumerate(trunks):
            own = (index, slice(None), slice(len(trunk.token_ids) - 1))
            # Copies, lest one trunk in use hold on to all those read with it.
            trunk.layers = [KeysValues(layer.keys[own].clone(), layer.values[own].clone()) for layer in read.layers]  # type: ignore[index]

    def _copy_trunks(self, rows: Sequence[_Row], slot: int) -> None:
        for trunk, on_trunk in groupby(rows, key=lambda row: row.trunk):
            own = list(on_trunk)
            self.cache.fill(slice(slot, slot + len(own)), trunk.layers, max(row.prefix_length for row in own))  # type: ignore[union-attr]
            slot += len(own)
            for row in own:
                row.trunk = None

    def step(self) -> list[int]:
        """Read every row's last token and return its next."""
        count = len(self.rows)
        more: dict[str, Any] = {"trunk_uses": self._trunk_uses()} if self.shared else {}
        logits_BV = next_token_logits(
            self.model,
            self.cache,
            tokens_B=self.last_tokens[:count],
            lengths_B=self.lengths[:count],
            positions_B=self.offsets[:count] + self.lengths[:count],
            **more,
        )
        tokens_B = _draw(logits_BV, self.rows)
        self.lengths[:count] += 1
        self.last_tokens[:count] = tokens_B
        return tokens_B.tolist()

    def _trunk_uses(self) -> "list[TrunkUse]":
        if self._uses is None:
            on_trunk: dict[Trunk, list[int]] = {}
            for slot, row in enumerate(self.rows):
                if row.trunk and row.prefix_length:
                    on_trunk.setdefault(row.trunk, []).append(slot)
            heads = self.model.config.get_text_config().num_attention_heads
            self._uses = [
                TrunkUse.of(trunk, torch.tensor(slots, device=self.offsets.device), self.offsets[slots], heads)
                for trunk, slots in on_trunk.items()
            ]
        return self._uses

    def drop_finished(self) -> None:
        """Free the finished rows' slots; the last rows move into the gaps."""
        for slot in reversed([slot for slot, row in enumerate(self.rows) if row.finish_reason]):
            self.rows[slot].trunk = self.rows[slot].uniforms = None
            last = len(self.rows) - 1
            if slot != last:
                self.cache.copy(last, slot, int(self.lengths[last]))
                for tensor in (self.lengths, self.offsets, self.last_tokens):
                    tensor[slot] = tensor[last]
                self.rows[slot] = self.rows[last]
            self.rows.pop()
            self._uses = None


def _draw(logits_BV: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
    sampled = [index for index, row in enumerate(rows) if row.request.temperature > 0]
    place = {"device": logits_BV.device, "dtype": torch.float32}
    top_ps = [rows[index].request.top_p for index in sampled]
    return draw(
        logits_BV,
        sampled,
        temperature_S=torch.tensor([rows[index].request.temperature for index in sampled], **place),  # type: ignore[arg-type]
        top_p_S=torch.tensor(top_ps, **place) if any(top_p < 1 for top_p in top_ps) else None,  # type: ignore[arg-type]
        uniform_S=torch.tensor([rows[index].next_uniform() for index in sampled], dtype=torch.float64),
    )


def _chunks_of_tokens(trunks: Sequence[Trunk], most: int) -> list[list[Trunk]]:
    """Split trunks, in order, into lists whose padded size stays within `most` tokens; one trunk always fits."""
    chunks: list[list[Trunk]] = []
    longest = 0
    for trunk in trunks:
        longest = max(longest, len(trunk.token_ids))
        if not chunks or (len(chunks[-1]) + 1) * longest > most:
            chunks.append([])
            longest = len(trunk.token_ids)
        chunks[-1].append(trunk)
    return chunks
