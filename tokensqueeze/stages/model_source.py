"""Which model a stage's workers load, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tokensqueeze.config import EngineSettings
from tokensqueeze.engines.base import Engine
from tokensqueeze.engines.build import build_engine, build_scoring_model
from tokensqueeze.engines.checkpoint import context_length, eos_token_ids, load_tokenizer
from tokensqueeze.schema import Trace
from tokensqueeze.traces.anatomy import thinking_tokens
from tokensqueeze.traces.token_texts import TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelSource:
    folder: Path
    engine_settings: EngineSettings
    dtype: str
    think_end: str

    def engine(self) -> Engine:
        return build_engine(self.folder, self.engine_settings, self.dtype)

    def scoring_model(self) -> "PreTrainedModel":
        return build_scoring_model(self.folder, self.engine_settings, self.dtype)

    @cached_property
    def tokens(self) -> TokenTexts:
        return TokenTexts(load_tokenizer(self.folder), eos_token_ids(self.folder))

    @cached_property
    def context_length(self) -> int:
        return context_length(self.folder)

    def thinking_tokens(self, token_ids: Sequence[int]) -> int:
        return thinking_tokens(self.tokens.each(token_ids), self.think_end)

    def trace(
        self, problem_id: str, sample_index: int, token_ids: list[int], finish_reason: str, *, greedy: bool = False
    ) -> Trace:
        return Trace(
            trace_id=f"{problem_id}/{'greedy' if greedy else sample_index}",
            problem_id=problem_id,
            sample_index=sample_index,
            text=self.tokens.completion(token_ids),
            token_ids=token_ids,
            num_tokens=len(token_ids),
            finish_reason=finish_reason,  # type: ignore[arg-type]
        )
