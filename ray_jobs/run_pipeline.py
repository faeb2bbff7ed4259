"""A whole run as a Ray job, on the cluster that the job was submitted to.

    ray job submit --address http://HEAD:8265 --working-dir . -- python -m ray_jobs.run_pipeline SETTINGS.toml [--output DIR]

Takes the options of `tokensqueeze run`. A job's working directory is thrown away with it, so the default output is not in
it but in ~/tokensqueeze/runs/SETTINGS; on several nodes, name a folder that all of them see.
"""

import sys
from pathlib import Path

from tokensqueeze.cli import main


def arguments(given: list[str]) -> list[str]:
    if any(argument.split("=")[0] == "--output" for argument in given):
        return given
    name = next((Path(argument).stem for argument in given if argument.endswith(".toml")), "run")
    return [*given, "--output", str(Path.home() / "tokensqueeze" / "runs" / name)]


if __name__ == "__main__":
    main(["run", *arguments(sys.argv[1:])])
