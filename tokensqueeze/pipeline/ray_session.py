"""Connect to a Ray cluster, or start one on this machine that ends with the run."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import ray
import ray.data

from tokensqueeze.config import ResourcesSettings, StageName
from tokensqueeze.errors import EngineError

_WORKER_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def ray_session(address: str | None, resources: ResourcesSettings, *, training_workers: int = 1) -> Iterator[None]:
    """Use the Ray that is initialised, the one at `address` or in RAY_ADDRESS, or a private one on this machine.

    A private one has a CPU for every worker that any one stage asks for, and Ray's token authentication
    (`tokensqueeze.ray_token`).
    Raises `EngineError` if the cluster can't be reached.
    """
    # The observer tells what there is to tell.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": _WORKER_ENVIRONMENT})
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineError(
                f"--address {address}: no Ray cluster answers there ({error}); start one with ray start --head"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    pools = [resources.pool(stage) for stage in get_args(StageName)]
    # Each training worker takes one CPU; with fewer than that Ray would wait for ever.
    wanted = max(training_workers, *(math.ceil(pool.workers * pool.cpus_per_worker) for pool in pools))
    ray.init(
        address="local",  # by itself Ray would join whatever cluster was started on this machine last
        num_cpus=max(os.cpu_count() or 1, wanted),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": _WORKER_ENVIRONMENT},
    )
    try:
        yield
    finally:
        ray.shutdown()
