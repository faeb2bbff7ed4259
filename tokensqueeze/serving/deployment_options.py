"""What every deployment of engines asks of Ray Serve, whichever engine it is: places, autoscaling, health, drain."""

from typing import Any

from ray.serve.schema import LoggingConfig

from tokensqueeze.serving.settings import ServedModel, ServeSettings

_QUEUED_PER_PLACE = 0.25
"""Requests that wait in a replica per place of its batch, so that a place that falls free is taken at once."""
_HEALTH_PERIOD_SECONDS = 2.0
_HEALTH_TIMEOUT_SECONDS = 30.0
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
# Serve's own access log would double the ingress's, and says nothing that it doesn't.
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def lifecycle_options(settings: ServeSettings) -> dict[str, Any]:
    """Return how a replica is watched and stopped: it has `drain_seconds` to end its requests."""
    return {
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "health_check_period_s": _HEALTH_PERIOD_SECONDS,
        "health_check_timeout_s": _HEALTH_TIMEOUT_SECONDS,
        "logging_config": QUIET,
    }


def engine_options(name: str, model: ServedModel, settings: ServeSettings) -> dict[str, Any]:
    places, replicas = model.engine.max_batch_size, model.replicas
    return {
        "name": name,
        "max_ongoing_requests": places + max(1, round(places * _QUEUED_PER_PLACE)),
        "autoscaling_config": {
            "min_replicas": replicas.min,
            "initial_replicas": max(1, replicas.min),
            "max_replicas": replicas.max or max(1, replicas.min),
            "target_ongoing_requests": replicas.load * places,
            "upscale_delay_s": replicas.upscale_delay_seconds,
            "downscale_delay_s": replicas.downscale_delay_seconds,
        },
        **lifecycle_options(settings),
    }
