"""The server on a cluster: engines and ingress as one Ray Serve application.

    serve deploy ray_jobs/configs/serve_cpu.yaml
    serve run ray_jobs.serve_model:build_app settings=SETTINGS.toml
    ray job submit --address http://HEAD:8265 -- python -m ray_jobs.serve_model SETTINGS.toml

The job serves until it is stopped; then no request is taken any more, and those under way are let end.
"""

import sys
from pathlib import Path
from typing import Any

from ray import serve

from tokensqueeze.cli import one_line_errors
from tokensqueeze.errors import SettingsError
from tokensqueeze.serving.deployments import serve_until_stopped, serving_app
from tokensqueeze.serving.settings import ServeSettings, check_serve_settings
from tokensqueeze.settings_file import read_settings_file


def settings_of(args: dict[str, Any]) -> ServeSettings:
    """Return the settings that `args` hold themselves, or those of the TOML file that `args["settings"]` names."""
    return check_serve_settings(read_settings_file(Path(args["settings"])) if "settings" in args else args)


def build_app(args: dict[str, Any]) -> serve.Application:
    return serving_app(settings_of(args))


if __name__ == "__main__":
    with one_line_errors():
        if len(sys.argv) != 2:
            raise SettingsError("SETTINGS.toml: name one file, as in python -m ray_jobs.serve_model server.toml")
        serve_until_stopped(settings_of({"settings": sys.argv[1]}))
