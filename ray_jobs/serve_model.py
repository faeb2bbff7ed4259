"""The server on a cluster: engines and ingress as one Ray Serve application.

    serve deploy ray_jobs/configs/serve_cpu.yaml
    serve run ray_jobs.serve_model:build_app settings=SETTINGS.toml
    ray job submit --address http://HEAD:8265 -- python -m ray_jobs.serve_model SETTINGS.toml

The job serves until it is stopped; then no request is taken any more, and those under way are let end.
"""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve

from tokensqueeze.serving.deployments import serving_app
from tokensqueeze.serving.settings import ServeSettings, check_serve_settings
from tokensqueeze.settings_file import read_settings_file


def settings_of(args: dict[str, Any]) -> ServeSettings:
    """Return the settings that `args` hold themselves, or those of the TOML file that `args["settings"]` names."""
    return check_serve_settings(read_settings_file(Path(args["settings"])) if "settings" in args else args)


def build_app(args: dict[str, Any]) -> serve.Application:
    return serving_app(settings_of(args))


def serve_until_stopped(settings: ServeSettings) -> None:
    ray.init()
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run(serving_app(settings), name="tokensqueeze", route_prefix="/")
    print(f"serving {', '.join(settings.model_names())} at http://{settings.host}:{settings.port}/v1", flush=True)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    serve.delete("tokensqueeze")


if __name__ == "__main__":
    serve_until_stopped(settings_of({"settings": sys.argv[1]}))
