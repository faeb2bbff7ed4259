"""Notice that a worker is about to be taken away, and let all of them know at the same step, in time for a checkpoint.

Two things tell: SIGTERM, which cluster managers send to a machine's processes some seconds before they end them, and
Ray's list of nodes that are being drained, as spot nodes and Kubernetes pods are.
"""

import signal
import threading
import time
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

_ASK_SECONDS = 5.0
"""Between looks at Ray's list; Ray Train itself looks as often."""
_terminated = threading.Event()


class PreemptionWatch:
    """Every worker has one, and asks it after every step."""

    def __init__(self) -> None:
        """Start to listen. Called in a worker's training thread."""
        self._device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        self._asked = time.monotonic()
        # Signals are handled in a process's main thread alone, which is free for the actor's methods meanwhile.
        actor: Any = ray.get_runtime_context().current_actor
        ray.get(actor.__ray_call__.remote(_listen))

    def agreed(self) -> bool:
        """Whether any worker is about to be taken away; the same answer on every worker."""
        due = dist.get_rank() == 0 and time.monotonic() - self._asked > _ASK_SECONDS
        told = torch.tensor([_terminated.is_set(), due], dtype=torch.int32, device=self._device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        terminated, ask = told.tolist()
        if ask:
            self._asked = time.monotonic()
            # Waits for all workers, hence not at every step.
            return bool(terminated) or ray.train.get_preemption_info() is not None
        return bool(terminated)


def _listen(actor: object) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: _terminated.set())
