"""Where does the demo's time go: seconds, tokens and rate of each stage?

    python -m benchmarks.demo_stages [--work-dir DIR]

Runs the demo from nothing in an empty folder. A stage's seconds are wall clock, the start of its workers included; the
rate is tokens generated, scored or trained on per second of that. `share` is of all stages together.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from tokensqueeze.demo import settings_file
from tokensqueeze.methods import load_settings
from tokensqueeze.ray_token import private_ray_token
from tokensqueeze.ray_words import ray_words_to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, help="an empty folder; default: a temporary one")
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print((__doc__ or "").partition("\n")[0], style="bold")
    with tempfile.TemporaryDirectory() as temporary:
        output = arguments.work_dir or Path(temporary) / "demo"
        output.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with private_ray_token(), ray_words_to(output / "ray.log"):
            from tokensqueeze.pipeline.run import run

            records = run(load_settings(settings_file()), output).records
        total = time.monotonic() - started
    table = RichTable("stage")
    for header in ("rows", "tokens", "seconds", "tokens/s", "share"):
        table.add_column(header, justify="right")
    seconds = sum(record.seconds for record in records)
    for record in records:
        table.add_row(
            record.stage,
            f"{record.rows:,}",
            f"{record.tokens:,}",
            f"{record.seconds:.1f}",
            f"{record.tokens / record.seconds:,.0f}" if record.tokens else "",
            f"{record.seconds / seconds:.0%}",
        )
    console.print(table)
    console.print(f"all stages {seconds:.0f} s; the whole run, start of Ray and report included, {total:.0f} s")
    stages = {r.stage: {"seconds": r.seconds, "rows": r.rows, "tokens": r.tokens} for r in records}
    print(json.dumps({"total_seconds": round(total, 1), "stages": stages}))


if __name__ == "__main__":
    main()
