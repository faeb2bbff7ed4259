"""Serving with transformers: a batch of slots that requests join and leave while it runs, a token for every row at each step.

A request's tokens follow from its seed and its own past alone, as in `TransformersEngine.generate`: neither the company in the
batch nor an interruption that is gone on from changes them.

Shapes: B rows in the batch, S of them sampled, T prompts read together, P their tokens, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from transformers import DynamicCache

from tokensqueeze.engines.base import GenerationRequest, ThinkingLimit, TokenLogprob
from tokensqueeze.engines.sampling import draw
from tokensqueeze.engines.served_row import Growth, ServedRow
from tokensqueeze.engines.slot_cache import SlotCache, next_token_logits
from tokensqueeze.engines.thinking_watch import ThinkingWatch
from tokensqueeze.engines.transformers_engine import TransformersEngine
from tokensqueeze.engines.trunks import KeysValues
from tokensqueeze.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ContinuousBatch:
    """The requests that one engine serves; not for several threads at once.

    Each step reads at most `prompt_share` tokens of new prompts, so that rows that are answering do not wait for long ones.
    """

    def __init__(self, engine: TransformersEngine, *, prompt_share: int = 256):
        if engine.tokenizer is None:
            raise EngineError("a batch that serves needs the engine's tokenizer, to see where thinking ends")
        self.engine, self.model, self.slots, self.prompt_share = engine, engine.model, engine.max_batch_size, prompt_share
        self._texts = _TokenTexts(engine.tokenizer, engine.eos_token_ids)
        self._cache = SlotCache(self.slots, self.model.device)
        self._waiting: deque[ServedRow] = deque()
        self._long: _LongPrompt | None = None
        self._long_is_next = True
        self._rows: list[ServedRow] = []
        """Row b lives in slot b of the cache, without gaps."""
        self._lengths = torch.zeros(self.slots, dtype=torch.long, device=self.model.device)
        """Tokens in each slot: all of a row's but its last, which the next step reads."""
        self._last_tokens = torch.zeros_like(self._lengths)
        self._sampling: _Sampling | None = None

    @property
    def active(self) -> int:
        """Requests in a slot."""
        return len(self._rows) + (self._long is not None)

    @property
    def waiting(self) -> int:
        """Requests whose prompts have not been read."""
        return len(self._waiting)

    def add(
        self,
        key: str,
        request: GenerationRequest,
        *,
        generated_token_ids: Sequence[int] = (),
        thinking: ThinkingLimit | None = None,
        top_logprobs: int | None = None,
    ) -> None:
        """Take up a request, whose completion may have begun elsewhere with `generated_token_ids`.

        Raises `EngineError` where there is nothing to generate, or no room for it. Stop texts are not looked for.
        """
        prompt, limit = request.prompt_token_ids, self.engine.context_length
        if not prompt:
            raise EngineError("the prompt is empty; a completion needs at least one token to follow")
        max_tokens = min(request.max_tokens, limit - len(prompt))
        if len(generated_token_ids) >= max_tokens:
            raise EngineError(
                f"nothing can be generated behind {len(prompt)} tokens of prompt and {len(generated_token_ids)} of completion: "
                f"the context is {limit} and max_tokens {request.max_tokens}; shorten the prompt, or raise max_tokens"
            )
        watch = ThinkingWatch(thinking, self._texts) if thinking else None
        self._waiting.append(
            ServedRow(key, request, max_tokens, self.engine.eos_token_ids, list(generated_token_ids), watch, top_logprobs)
        )

    @torch.inference_mode()
    def cancel(self, key: str) -> None:
        """Forget a request and free its slot; nothing happens if it is not there."""
        if self._long and self._long.row.key == key:
            self._long = None
        for row in [row for row in self._waiting if row.key == key]:
            self._waiting.remove(row)
        for slot in [slot for slot, row in enumerate(self._rows) if row.key == key]:
            self._drop(slot)

    @torch.inference_mode()
    def step(self) -> list[Growth]:
        """Read some of the waiting prompts and a token of every row; return what there is to hand out."""
        self._read_prompts()
        count = len(self._rows)
        if not count:
            return []
        lengths_B = self._lengths[:count]
        logits_BV = next_token_logits(
            self.model, self._cache, tokens_B=self._last_tokens[:count], lengths_B=lengths_B, positions_B=lengths_B
        )
        tokens_B = self._draw(logits_BV)
        self._note_logprobs(logits_BV, tokens_B)
        lengths_B += 1
        self._last_tokens[:count] = tokens_B
        growths = []
        for slot, (row, token) in enumerate(zip(self._rows, tokens_B.tolist(), strict=True)):
            growth = row.take(token)
            if growth:
                growths.append(growth)
            elif row.taken_back:
                self._rewind(slot, row)
        for slot in reversed([slot for slot, row in enumerate(self._rows) if row.finish_reason]):
            self._drop(slot)
        return growths

    def _draw(self, logits_BV: torch.Tensor) -> torch.Tensor:
        sampling = self._sampling = self._sampling or _Sampling.of(self._rows, self.model.device)
        tokens_B = draw(
            logits_BV,
            sampling.slots_S,
            temperature_S=sampling.temperature_S,
            top_p_S=sampling.top_p_S,
            uniform_S=torch.tensor([row.next_uniform() for row in sampling.rows], dtype=torch.float64),
        )
        for slot, row in enumerate(self._rows):
            if row.closing:
                tokens_B[slot] = row.closing.popleft()
        return tokens_B

    def _note_logprobs(self, logits_BV: torch.Tensor, tokens_B: torch.Tensor) -> None:
        slots = [slot for slot, row in enumerate(self._rows) if row.top_logprobs is not None]
        if not slots:
            return
        logps_BV = torch.log_softmax(logits_BV[slots], dim=-1)
        own = logps_BV.gather(1, tokens_B[slots, None])[:, 0].tolist()
        most = min(max(self._rows[slot].top_logprobs or 0 for slot in slots), logps_BV.shape[1])
        values, tokens = (part.tolist() for part in logps_BV.topk(most))
        for index, slot in enumerate(slots):
            row = self._rows[slot]
            top = tuple(zip(tokens[index], values[index], strict=True))[: row.top_logprobs]
            row.logprobs.append(TokenLogprob(own[index], top))

    def _rewind(self, slot: int, row: ServedRow) -> None:
        """Have the slot end again with the row's last token, which is read anew."""
        self._lengths[slot] -= row.taken_back
        self._last_tokens[slot] = row.last_token
        row.taken_back = 0

    def _drop(self, slot: int) -> None:
        """Free a slot; the last row moves into the gap."""
        last = len(self._rows) - 1
        if slot != last:
            self._cache.copy(last, slot, int(self._lengths[last]))
            self._lengths[slot] = self._lengths[last]
            self._last_tokens[slot] = self._last_tokens[last]
            self._rows[slot] = self._rows[last]
        self._rows.pop()
        self._sampling = None

    def _read_prompts(self) -> None:
        """Read one step's share: of a long prompt, in turns with those behind it that need no more than one share."""
        if not self._waiting and not self._long:
            return
        read_long = self._long is not None and self._long_is_next
        if read_long or not self._read_short_prompts():
            self._read_long_prompt()
        self._long_is_next = not read_long

    def _read_short_prompts(self) -> bool:
        free = self.slots - self.active
        # Prompts are read several at a time where more wait than there is room for; until then, the batch runs on, smaller.
        if not free or (self._rows and free < min(len(self._waiting), self.slots // 8)):
            return False
        group: list[ServedRow] = []
        copies: list[ServedRow] = []
        distinct: set[tuple[int, ...]] = {row.prefix for row in self._rows}
        longest = 0
        for row in self._waiting:
            if len(group) + len(copies) == free:
                break
            if row.prefix in distinct:
                copies.append(row)
            elif len(row.prefix) <= self.prompt_share:
                longest = max(longest, len(row.prefix))
                if (len(group) + 1) * longest > self.prompt_share:
                    break
                group.append(row)
                distinct.add(row.prefix)
            elif self._long is None:
                self._long = _LongPrompt(row)
                free -= 1
        started = {*group, *copies, *([self._long.row] if self._long else [])}
        self._waiting = deque(row for row in self._waiting if row not in started)
        self._read_together(group, longest)
        for row in copies:
            source = next(slot for slot, other in enumerate(self._rows) if other.prefix == row.prefix)
            self._cache.copy(source, len(self._rows), len(row.prefix))
            self._start(row)
        return bool(group or copies)

    def _read_together(self, rows: Sequence[ServedRow], longest: int) -> None:
        read = DynamicCache()
        if longest:
            # Padding stands on the right, where causal attention never looks back at it.
            ids_TP = torch.zeros(len(rows), longest, dtype=torch.long)
            for index, row in enumerate(rows):
                ids_TP[index, : len(row.prefix)] = torch.tensor(row.prefix)
            self.model.base_model(input_ids=ids_TP.to(self.model.device), past_key_values=read, use_cache=True)
        for index, row in enumerate(rows):
            self._fill(read, index, len(row.prefix))
            self._start(row)

    def _read_long_prompt(self) -> None:
        if self._long is None:
            return
        row, read = self._long.row, self._long.read
        done = read.get_seq_length()
        piece = torch.tensor([row.prefix[done : done + self.prompt_share]], device=self.model.device)
        self.model.base_model(input_ids=piece, past_key_values=read, use_cache=True)
        if done + self.prompt_share >= len(row.prefix):
            self._long = None
            self._fill(read, 0, len(row.prefix))
            self._start(row)

    def _fill(self, read: DynamicCache, index: int, length: int) -> None:
        """Copy what was read of one prompt into the next free slot."""
        layers = [KeysValues(layer.keys[index], layer.values[index]) for layer in read.layers]  # type: ignore[index]
        slot = len(self._rows)
        self._cache.fill(slice(slot, slot + 1), layers, length)

    def _start(self, row: ServedRow) -> None:
        """Put a row into the next free slot, which holds its prefix."""
        slot = len(self._rows)
        self._lengths[slot] = len(row.prefix)
        self._last_tokens[slot] = row.last_token
        self._rows.append(row)
        self._sampling = None


class _LongPrompt:
    """A prompt of more than one share, and what has been read of it."""

    def __init__(self, row: ServedRow):
        self.row, self.read = row, DynamicCache()


@dataclass(frozen=True)
class _Sampling:
    """What the sampled rows are drawn with, S of the batch's B."""

    rows: list[ServedRow]
    slots_S: torch.Tensor
    temperature_S: torch.Tensor
    top_p_S: torch.Tensor | None

    @classmethod
    def of(cls, rows: Sequence[ServedRow], device: torch.device) -> "_Sampling":
        slots = [slot for slot, row in enumerate(rows) if row.request.temperature > 0]
        sampled = [rows[slot] for slot in slots]
        top_ps = [row.request.top_p for row in sampled]
        return cls(
            sampled,
            torch.tensor(slots, dtype=torch.long, device=device),
            torch.tensor([row.request.temperature for row in sampled], dtype=torch.float32, device=device),
            torch.tensor(top_ps, dtype=torch.float32, device=device) if any(top_p < 1 for top_p in top_ps) else None,
        )


class _TokenTexts(dict[int, str]):
    """Each token's own text, decoded when it is first met; the tokens that end a completion have none."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", eos_token_ids: frozenset[int]):
        super().__init__({token: "" for token in eos_token_ids})
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self.setdefault(token, cast(str, text))
