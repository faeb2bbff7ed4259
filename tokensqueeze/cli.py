"""The command line: `tokensqueeze run`, `tokensqueeze demo`, and what helps to use them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokensqueeze.errors import MissingPackageError, SettingsError, TokenSqueezeError
from tokensqueeze.methods import METHODS, load_settings
from tokensqueeze.ray_token import private_ray_token
from tokensqueeze.tables import make_folder

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make a reasoning model think in fewer tokens at the same accuracy, with its own data, on Ray.",
)

_SettingsFile = Annotated[Path, typer.Argument(metavar="SETTINGS.toml", help="The run's settings.")]
_Output = Annotated[
    Path | None,
    typer.Option(help="Folder for report.html, evaluation.json, model/ and tables/.", show_default="runs/SETTINGS"),
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. sampling.num_samples=32; may be repeated."),
]
_Until = Annotated[
    str,
    typer.Option(metavar="STAGE", help="Stop behind: sample, verify, select, propose, accept, pair, score, train or evaluate."),
]
_Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster, such as auto or ray://host:10001; else Ray runs on this machine alone."),
]
_Store = Annotated[Path | None, typer.Option(help="Folder for the tables, if several runs share them.")]


@app.command()
def run(
    settings_file: _SettingsFile,
    output: _Output = None,
    overrides: _Set = None,
    until: _Until = "evaluate",
    address: _Address = None,
    store: _Store = None,
) -> None:
    """Squeeze the model that SETTINGS.toml names. Killed at any moment and run again, it goes on where it was."""
    _run(settings_file, output or Path("runs") / settings_file.stem, overrides or [], until, address, store)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the run leaves.")] = Path("runs/demo"),
    overrides: _Set = None,
    until: _Until = "evaluate",
    address: _Address = None,
    store: _Store = None,
) -> None:
    """Squeeze the tiny model that ships with the package: the whole pipeline, in minutes, on two CPU cores."""
    from tokensqueeze.demo import settings_file

    _run(settings_file(), output, overrides or [], until, address, store)


@app.command()
def check(settings_file: _SettingsFile, overrides: _Set = None) -> None:
    """Check SETTINGS.toml, its problem files and its model directory, and print every setting."""
    settings = load_settings(settings_file, overrides or [])
    with _named_if_missing():
        from tokensqueeze.pipeline.plan import plan_run
    plan = plan_run(settings, Path("tables"))
    Console().print_json(settings.model_dump_json())
    for split, problems in plan.problem_sets.items():
        typer.echo(f"problems.{split}: {len(problems.problems)} problems")


@app.command()
def methods() -> None:
    """List the methods: each is a selector, a rewriter and an objective."""
    for method in METHODS.values():
        typer.echo(f"{method.name}\n  {method.summary}")
        typer.echo(f"  {method.selector.name} + {method.rewriter.name} + {method.objective.name}")


def _run(settings_file: Path, output: Path, overrides: list[str], until: str, address: str | None, store: Path | None) -> None:
    settings = load_settings(settings_file, overrides)
    with nullcontext() if address else private_ray_token():
        with _named_if_missing():
            from tokensqueeze.console import RunConsole
            from tokensqueeze.pipeline.plan import plan_run
            from tokensqueeze.pipeline.run import STEPS, run_plan
            from tokensqueeze.reporting.summary import evaluation_table
        if until not in STEPS:
            raise SettingsError(f"--until {until}: no such stage; choose from {', '.join(STEPS)}")
        plan = plan_run(settings, store or output / "tables")
        console = RunConsole()
        try:
            with ray_words_to(make_folder(output) / "ray.log"):
                result = run_plan(plan, output, until=until, address=address, observer=console)  # type: ignore[arg-type]
        finally:
            console.close()
    if result.evaluation:
        console.console.print(evaluation_table(result.evaluation))
    for made in ("report.html", "evaluation.json", "model"):
        if (output / made).exists():
            console.note(f"{made:16} {output / made}")


@contextmanager
def _named_if_missing() -> Iterator[None]:
    """Turn a failed import into the install command."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{error.name} is not installed: pip install 'tokensqueeze[run]'") from error


@contextmanager
def ray_words_to(log: Path) -> Iterator[None]:
    """Send what Ray's own processes write to standard error to a file, so that a terminal shows the run."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a `TokenSqueezeError` is one line, never a traceback."""
    try:
        app(arguments)
    except TokenSqueezeError as error:
        print(f"tokensqueeze: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("tokensqueeze: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
