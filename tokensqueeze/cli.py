"""The command line: squeeze a model (`run`, `demo`), measure (`evaluate`, `compare`, `verify`), host it (`serve`)."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console

from tokensqueeze.config import EvaluateSettings, check_evaluate_settings
from tokensqueeze.errors import MissingPackageError, SettingsError, TokenSqueezeError
from tokensqueeze.methods import METHODS, load_settings
from tokensqueeze.ray_token import private_ray_token
from tokensqueeze.ray_words import ray_words_to
from tokensqueeze.settings_file import override_settings
from tokensqueeze.tables import make_folder, write_json

_INTERRUPTED = 130

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


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL or Parquet; it is read, never written.")],
    gold_column: Annotated[str, typer.Option(help="Column of the gold answers.")],
    response_column: Annotated[str, typer.Option(help="Column of the responses, thinking and answer together.")],
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSONL or Parquet, or - for stdout.", show_default="FILE.verified.jsonl")
    ] = None,
    finish_reason_column: Annotated[
        str | None, typer.Option(help="Column that says length where a response was cut off: those are incorrect.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="How answers are judged: math; choice, the gold answer being a letter or JSON {letter, options}; code, it "
            "being JSON of tests such as {asserts, entry_point} or {stdin: [{input, output}]}."
        ),
    ] = "math",
    answer_form: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the answer is looked for, first found counts: boxed, answer_tag, hash, last_number, choice_phrase.",
            show_default="boxed; of a choice choice_phrase too",
        ),
    ] = None,
    think_end: Annotated[str, typer.Option(help="Text that ends the thinking; answers are looked for behind it.")] = "</think>",
    timeout_seconds: Annotated[float | None, typer.Option(help="Longest time one comparison may take.")] = None,
    min_isolation: Annotated[
        str | None, typer.Option(help="The least that must stand between a program and this machine: namespaces or rlimits.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that judge.", show_default="one per CPU")] = None,
    overwrite_columns: Annotated[bool, typer.Option(help="Replace verdict and the like where FILE has them.")] = False,
) -> None:
    """Judge responses against gold answers: FILE's rows again, with verdict, extracted_answer and verdict_cause."""
    from tokensqueeze.pipeline.verify_command import verify_from_shell

    verify_from_shell(
        source,
        output=output,
        gold_column=gold_column,
        response_column=response_column,
        finish_reason_column=finish_reason_column,
        kind=kind,
        answer_forms=answer_form,
        think_end=think_end,
        timeout_seconds=timeout_seconds,
        min_isolation=min_isolation,
        workers=workers,
        overwrite_columns=overwrite_columns,
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, demo, or a server's http://host:port/v1.")],
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            "-b",
            metavar="NAME=PATH",
            help="A benchmark with its file or hf: data set, by its name alone if the Hugging Face cache has it; a name of "
            "yours with a problem file; or demo. Repeat.",
        ),
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measure the responses in this JSONL or Parquet file; MODEL gives the tokenizer."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json and tables/.", show_default="evaluations/MODEL")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first this many problems of each.")] = None,
    samples: Annotated[int | None, typer.Option(min=0, help="Sampled traces per problem.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Decode each problem greedily too.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Instead of the benchmark's own.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Instead of the benchmark's own.")] = None,
    token_budget: Annotated[int | None, typer.Option(min=1, help="Of the AUC; another one draws nothing anew.")] = None,
    thinking_budgets: Annotated[
        list[int] | None,
        typer.Option("--thinking-budget", metavar="TOKENS", help="Also close thinking there and have it answer; repeat."),
    ] = None,
    served_model: Annotated[str | None, typer.Option(help="The name a server has the model under.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's own tokenizer, where a server does not tell reasoning from answer tokens.")
    ] = None,
    allow_download: Annotated[bool, typer.Option("--allow-download", help="Fetch hf: data sets that are not here.")] = False,
    overrides: _Set = None,
    address: _Address = None,
    store: _Store = None,
) -> None:
    """Measure MODEL on benchmarks: accuracy, pass@k, lengths in tokens, AUC, with intervals. Run again, it goes on."""
    settings = _evaluate_settings(
        model,
        overrides or [],
        decoding={
            "num_samples": samples,
            "greedy": greedy or None,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "token_budget": token_budget,
        },
        forcing={"thinking_budgets": thinking_budgets or None},
        endpoint={"model": served_model, "tokenizer": str(tokenizer) if tokenizer else None},
        traces={"path": str(traces) if traces else None},
    )
    output = output or Path("evaluations") / _file_name(settings)
    with nullcontext() if address else private_ray_token():
        with _named_if_missing():
            from tokensqueeze.console import RunConsole
            from tokensqueeze.pipeline.evaluate import benchmark_source, plan_evaluation, run_evaluation
            from tokensqueeze.reporting.benchmark_table import benchmark_tables
        if limit and not benchmarks:
            raise SettingsError("--limit: is of a --benchmark's problems; a file of --traces is measured whole")
        sources = [benchmark_source(text, limit=limit) for text in benchmarks or []]
        plan = plan_evaluation(settings, sources, store or output / "tables", allow_download=allow_download)
        console = RunConsole()
        try:
            with ray_words_to(make_folder(output) / "ray.log"):
                figures = run_evaluation(plan, output, address=address, observer=console)  # type: ignore[arg-type]
        finally:
            console.close()
    for table in benchmark_tables(figures):
        console.console.print(table)
    console.note(f"{'evaluation.json':16} {output / 'evaluation.json'}")


def _file_name(settings: EvaluateSettings) -> str:
    """Return a name for what was evaluated: the directory's, or the server's host, port and model."""
    if not settings.endpoint.url:
        return Path(settings.model.path).resolve().name
    served = f"{urlsplit(settings.endpoint.url).netloc}-{settings.endpoint.model or 'model'}"
    return re.sub(r"[^\w.-]+", "-", served)


def _evaluate_settings(model: str, overrides: list[str], **sections: dict[str, Any]) -> EvaluateSettings:
    """Return what the command line says, `--set` last; what was not given is left to the benchmarks."""
    said = {section: {name: value for name, value in given.items() if value is not None} for section, given in sections.items()}
    values: dict[str, Any] = {section: given for section, given in said.items() if given}
    if model.startswith(("http://", "https://")):
        values.setdefault("endpoint", {})["url"] = model
    else:
        values["model"] = {"path": model}
    override_settings(values, overrides)
    return check_evaluate_settings(values)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...",
            help="Folders that evaluate or run has left; the first model is what the others are held against. "
            "NAME=FOLDER names one; FOLDER:base and FOLDER:squeezed pick one of a run.",
        ),
    ],
    benchmark: Annotated[
        str | None, typer.Option(help="Compare on this benchmark alone.", show_default="all that are shared")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("comparison.html"),
    budget: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Token budget of the AUC.", show_default="the evaluations' own")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there too.")] = None,
    common: Annotated[bool, typer.Option("--common", help="Where problems differ, compare on those in common.")] = False,
) -> None:
    """Compare models on the same problems, paired by problem: a table here, and a page with the curves."""
    with _named_if_missing():
        from tokensqueeze.pipeline.compare import compare_models
        from tokensqueeze.reporting.comparison_data import comparison_json
        from tokensqueeze.reporting.comparison_page import write_comparison
        from tokensqueeze.reporting.comparison_table import CHANGE_LEGEND, MODEL_LEGEND, section_table
    comparison = compare_models(models, benchmark=benchmark, token_budget=budget, common=common)
    write_comparison(comparison, output)
    if json_file:
        write_json(json_file, comparison_json(comparison))
    console = Console(soft_wrap=False)
    for note in comparison.notes:
        console.print(note, markup=False, highlight=False)
    for section in comparison.sections:
        console.print(section_table(section))
        for warning in section.warnings:
            console.print(f"! {warning}", markup=False, highlight=False)
    console.print(f"{MODEL_LEGEND} {CHANGE_LEGEND}", markup=False, highlight=False)
    for written in (output, *([json_file] if json_file else [])):
        console.print(f"{written.name:16} {written}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model directory, or demo; not needed with --settings.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Host this one too, to be compared with on the page at /.")
    ] = None,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", metavar="FILE.toml", help="Models, keys, limits and all else.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What clients ask for.", show_default="the directory's name, or its parent's if it is model"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; others than this machine's own need keys.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free one.", show_default="8000")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Engines behind each model.", show_default="1")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each transformers engine.", show_default="1")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="transformers or vllm.", show_default="transformers")] = None,
    access_log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One line of JSON per request.", show_default="standard error")
    ] = None,
    require_key: Annotated[bool | None, typer.Option("--key/--no-key", help="Whether clients must show a key.")] = None,
    overrides: _Set = None,
) -> None:
    """Host MODEL behind an OpenAI-compatible endpoint on this machine, with thinking budgets; Ctrl-C stops it, drained."""
    with _named_if_missing():
        from tokensqueeze.serving.console import ServerConsole
        from tokensqueeze.serving.settings import serve_settings
    settings = serve_settings(
        settings_file,
        model=model,
        base=base,
        name=name,
        each={"replicas": {"min": replicas}, "engine": {"threads": threads, "kind": engine}},
        server={
            "host": host,
            "port": port,
            "access_log": str(access_log) if access_log else None,
            "require_key": require_key,
        },
        overrides=overrides or [],
    )
    with private_ray_token():
        with _named_if_missing():
            from tokensqueeze.serving.launch import serve_models
        console = ServerConsole()
        serve_models(
            settings, announce=lambda listening: console.announce(listening, own_keys=bool(settings.keys)), say=console.say
        )


@app.command()
def serve_key(name: Annotated[str, typer.Argument(help="Whom the key is for; it stands in the access log.")]) -> None:
    """Make a key: the lines for a server's settings, which keep its hash alone; the key itself goes to standard error."""
    from tokensqueeze.serving.auth import key_digest, new_key

    key = new_key()
    typer.echo(f"the key, for {name}; it is kept nowhere:\n{key}", err=True)
    typer.echo(f'[[keys]]\nname = {json.dumps(name)}\nsha256 = "{key_digest(key)}"')


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
        # Ray Train raises its own, which names no module.
        what = f"{error.name} is not installed" if error.name else str(error).rstrip(".")
        raise MissingPackageError(f"{what}: pip install 'tokensqueeze[run]'") from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line for a `TokenSqueezeError`, and its exit code."""
    try:
        yield
    except TokenSqueezeError as error:
        print(f"tokensqueeze: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a `TokenSqueezeError` is one line, never a traceback."""
    try:
        with one_line_errors():
            app(arguments)
    except SystemExit as exit:
        # What typer makes of Ctrl-C.
        if exit.code == _INTERRUPTED:
            print("tokensqueeze: stopped; the same command goes on from here", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
