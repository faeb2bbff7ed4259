"""The engines behind a Serve deployment: a completion whose replica dies is gone on with by another.

The request to the other carries the tokens that have come, so that it draws what would have been drawn without the
interruption.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from tokensqueeze.errors import EngineError
from tokensqueeze.serving.generation import EngineStopped, Piece, ServedRequest

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

_LOST = (RayActorError, ReplicaUnavailableError, TaskCancelledError, AioRpcError, EngineStopped, asyncio.CancelledError)
"""What a stream breaks off with where its replica dies, or is stopped before the stream has ended."""
_FIRST_PAUSE_SECONDS = 0.1
"""Before a completion is taken up again; twice as long at each further time."""
_STATUS_SECONDS = 1.0
"""How long a count of replicas is good for: Serve's controller is asked no more often."""


class HandleSource:
    """The engines of one deployment."""

    def __init__(self, handle: "DeploymentHandle", *, resumes: int = 2, patience_seconds: float = 120.0):
        """Within `patience_seconds` from a replica's death another must go on, or the request fails."""
        self._handle, self._resumes, self._patience_seconds = handle, resumes, patience_seconds
        # By gRPC, which takes a third of the time that pieces take as Ray objects.
        self._engines: DeploymentHandle = handle.options(
            stream=True,
            method_name="stream",
            _by_reference=False,
            request_serialization="pickle",
            response_serialization="pickle",
        )
        self._running, self._running_until = 0, 0.0
        # A controller that does not answer keeps one thread of this source's own waiting, and no other.
        self._status_thread = ThreadPoolExecutor(1, "replicas")
        self._asking: asyncio.Future[int] | None = None

    async def stream(self, request: ServedRequest) -> AsyncGenerator[Piece, None]:
        """Yield the completion in pieces. Closing the generator frees the request's place in the engine.

        Raises `EngineError` where none could finish it.
        """
        generated, lost, told = list(request.generated_token_ids), 0, 0
        while True:
            rest = replace(request, generated_token_ids=tuple(generated))
            try:
                async with aclosing(self._pieces(rest, self._patience_seconds if lost else None)) as pieces:
                    async for piece in pieces:
                        generated += piece.token_ids
                        yield piece if told == lost else replace(piece, resumed=lost - told)
                        told = lost
                return
            except _LOST as error:
                if _is_own_cancellation(error):
                    raise
                if lost == self._resumes:
                    raise EngineError(f"the request's engine broke off {lost + 1} times, the last by {error!r}") from error
                lost += 1
            await asyncio.sleep(_FIRST_PAUSE_SECONDS * 2 ** (lost - 1))

    async def _pieces(self, request: ServedRequest, patience_seconds: float | None) -> AsyncGenerator[Piece, None]:
        """Yield what one replica gives; its first piece must come in time."""
        response = cast("DeploymentResponseGenerator[Piece]", self._engines.remote(request))
        has_ended = False
        try:
            async with asyncio.timeout(patience_seconds):
                piece = await anext(response, None)
            while piece is not None:
                has_ended = piece.finish_reason is not None
                yield piece
                piece = await anext(response, None)
        except TimeoutError as error:
            raise EngineError(f"no engine has gone on with the request for {patience_seconds:g} s") from error
        # The first only where somebody has given the deployment a `max_queued_requests`: the ingress counts what waits itself.
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise EngineError(error.message) from error
        except _LOST as error:
            # Behind the end there is nothing more to lose.
            if _is_own_cancellation(error) or not has_ended:
                raise
        finally:
            if not has_ended:
                response.cancel()
        if not has_ended:
            raise EngineError("an engine ended a completion without a reason; ask again")

    async def running(self) -> int:
        """Return how many replicas can take requests."""
        if self._asking is None and time.monotonic() >= self._running_until:
            self._asking = asyncio.get_running_loop().run_in_executor(self._status_thread, self._running_replicas)
            self._asking.add_done_callback(self._told)
        if self._asking is not None:
            # Whoever asked first may lose patience; the question is the others' too.
            await asyncio.shield(self._asking)
        return self._running

    def _told(self, answer: "asyncio.Future[int]") -> None:
        self._asking = None
        self._running_until = time.monotonic() + _STATUS_SECONDS
        self._running = 0 if answer.cancelled() or answer.exception() else answer.result()

    def _running_replicas(self) -> int:
        application = serve.status().applications.get(self._handle.app_name)
        deployment = application and application.deployments.get(self._handle.deployment_name)
        states = deployment.replica_states if deployment else {}
        return sum(count for state, count in states.items() if state == "RUNNING")


def _is_own_cancellation(error: BaseException) -> bool:
    """Whether it is this task that was cancelled; a replica that is stopped cancels its streams by the same error."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
