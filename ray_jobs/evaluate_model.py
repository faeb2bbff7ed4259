"""An evaluation as a Ray job, on the cluster that the job was submitted to.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python -m ray_jobs.evaluate_model MODEL --benchmark math500=/shared/math500.jsonl [--output DIR]

Takes the options of `tokensqueeze evaluate`. A job's working directory is thrown away with it, so the default output is not in
it but in ~/tokensqueeze/evaluations/MODEL; on several nodes, name a folder that all of them see.
"""

import sys
from pathlib import Path

from tokensqueeze.cli import main


def arguments(given: list[str]) -> list[str]:
    if not given or any(argument.split("=")[0] == "--output" for argument in given):
        return given
    # MODEL comes first, as a directory, `demo` or a server's address.
    return [*given, "--output", str(Path.home() / "tokensqueeze" / "evaluations" / Path(given[0]).name)]


if __name__ == "__main__":
    main(["evaluate", *arguments(sys.argv[1:])])
