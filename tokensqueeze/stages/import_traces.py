"""imported_traces → traces: responses that were made elsewhere, as traces of this model's own tokens."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from tokensqueeze.engines.checkpoint import eos_token_ids, load_tokenizer
from tokensqueeze.schema import ImportedTrace, Problem, Trace
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.stage import ShardResult
from tokensqueeze.traces.imported import imported_completion, repeats


class ImportTraces:
    def __init__(self, source: ModelSource):
        self._source = source
        self._eos_token_ids = eos_token_ids(source.folder)
        # A chat model's tokenizer has the token that ends its turn.
        own = load_tokenizer(source.folder).eos_token_id
        self._ending = own if isinstance(own, int) else min(self._eos_token_ids, default=None)

    def __call__(self, inputs: Mapping[str, list[Any]]) -> ShardResult[Trace]:
        imported: dict[str, list[ImportedTrace]] = defaultdict(list)
        for trace in inputs["imported_traces"]:
            imported[trace.problem_id].append(trace)
        counts: Counter[str] = Counter()
        traces: list[Trace] = []
        for problem in inputs["problems"]:
            own = imported[problem.problem_id]
            counts["responses: copies of another of the same problem"] += repeats([trace.text for trace in own])
            traces += [self._trace(trace, problem, counts) for trace in own]
        return ShardResult(traces, counts={name: count for name, count in counts.items() if count})

    def _trace(self, imported: ImportedTrace, problem: Problem, counts: Counter[str]) -> Trace:
        completion = imported_completion(
            imported.text,
            imported.finish_reason,
            prompt=problem.prompt,
            tokens=self._source.tokens,
            eos_token_ids=self._eos_token_ids,
            ending=self._ending,
            room=self._source.context_length - len(problem.prompt_token_ids),
            think_end=self._source.think_end,
        )
        counts.update(f"responses: {note}" for note in completion.notes)
        return self._source.trace(problem.problem_id, imported.sample_index, completion.token_ids, completion.finish_reason)
