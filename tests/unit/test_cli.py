"""The command line as a user meets it, short of starting Ray: help, mistakes in one line, `check` and `methods`."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import ray

from tokensqueeze.cli import main
from tokensqueeze.methods import METHODS

ROOT = Path(__file__, "../../..").resolve()


class Told(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Told]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str) -> Told:
        try:
            main(list(arguments))
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capsys.readouterr()
        return Told(code, out, err)

    return run


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        """
        [model]
        path = "demo"
        [problems]
        train = { path = "demo:train", limit = 4 }
        test = { path = "demo:test", limit = 3 }
        [sampling]
        max_tokens = 100
        """
    )
    return path


def one_line(told: Told) -> str:
    """The one line on standard error of a command that a mistake has ended."""
    assert told.code == 2
    assert "Traceback" not in told.err and told.err.count("\n") == 1
    assert not ray.is_initialized()
    return told.err.strip()


def test_help_names_every_command_and_option(command: Command) -> None:
    told = command("--help")
    assert told.code == 0
    assert all(re.search(rf"^\s+{name}\s", told.out, re.MULTILINE) for name in ("run", "demo", "check", "methods"))
    for name, options in {
        "run": ["--output", "--set", "--until", "--address", "--store", "SETTINGS.toml"],
        "demo": ["--output", "--set", "--until", "--address", "--store"],
        "check": ["--set", "SETTINGS.toml"],
        "methods": [],
    }.items():
        told = command(name, "--help")
        assert told.code == 0
        assert all(option in told.out for option in options)


def test_every_stage_that_until_takes_stands_in_its_help(command: Command) -> None:
    from tokensqueeze.pipeline.run import STEPS

    words = re.findall(r"\w+", command("run", "--help").out)
    assert set(STEPS) <= set(words)


def test_methods_lists_each_with_its_parts(command: Command) -> None:
    told = command("methods")
    assert told.code == 0
    for method in METHODS.values():
        parts = f"{method.selector.name} + {method.rewriter.name} + {method.objective.name}"
        assert f"{method.name}\n  {method.summary}\n  {parts}\n" in told.out


def test_check_prints_every_setting_and_counts_the_problems(command: Command, settings: Path) -> None:
    told = command("check", str(settings), "--set", "sampling.num_samples=5", "--set", "selector.alpha=0.3")
    assert told.code == 0
    printed, _, counts = told.out.partition("\nproblems.train")
    assert ("problems.train" + counts).splitlines() == ["problems.train: 4 problems", "problems.test: 3 problems"]
    shown = json.loads(printed)
    assert (shown["sampling"]["num_samples"], shown["sampling"]["max_tokens"], shown["sampling"]["top_p"]) == (5, 100, 1.0)
    assert shown["selector"] == {"name": "adaptive_depth", "alpha": 0.3}


def test_check_and_run_start_nothing_and_write_nothing_where_there_is_a_mistake(
    command: Command, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("run", "run.toml", "--until", "smaple"),
        ("run", "gone.toml"),
        ("check", "gone.toml"),
        ("run", "run.toml", "--set", "selector=3.toml"),
        ("run", "run.toml", "--set", "sampling.num_samples"),
    ):
        assert command(*arguments).code == 2
    assert command("check", "run.toml").code == 0
    assert not ray.is_initialized()
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_a_missing_settings_file_is_one_line(command: Command) -> None:
    line = one_line(command("run", "gone.toml"))
    assert line == "tokensqueeze: gone.toml: No such file or directory; name an existing TOML file"


def test_an_unknown_stage_is_one_line_with_those_there_are(command: Command, settings: Path) -> None:
    line = one_line(command("run", str(settings), "--until", "smaple"))
    assert line == (
        "tokensqueeze: --until smaple: no such stage; choose from sample, verify, select, propose, accept, pair, score, "
        "train, evaluate"
    )


def test_a_malformed_override_is_one_line(command: Command, settings: Path) -> None:
    line = one_line(command("check", str(settings), "--set", "num_samples:3"))
    assert line == "tokensqueeze: --set num_samples:3: write it as section.key=value"


def test_wrong_settings_are_listed_without_a_traceback(command: Command, settings: Path) -> None:
    told = command("run", str(settings), "--set", "sampling.num_sample=3", "--set", "rewriter.kl_bnd=1")
    assert told.code == 2
    assert told.err.splitlines() == [
        "tokensqueeze: the settings have 2 mistakes:",
        "  sampling.num_sample: unknown setting; did you mean num_samples?",
        "  rewriter.kl_bnd: unknown setting; did you mean kl_bound?",
    ]


def test_a_missing_model_and_problem_file_are_listed_without_a_traceback(command: Command, settings: Path) -> None:
    told = command("check", str(settings), "--set", "model.path=no/model", "--set", "problems.test.path=gone.jsonl")
    assert told.code == 2
    first, model, problems = told.err.splitlines()
    assert first == "tokensqueeze: the settings have 2 mistakes:"
    assert "model.path: no/model: no such directory" in model and "problems.test" in problems and "gone.jsonl" in problems


def test_a_command_without_its_file_or_with_an_unknown_option_is_told(command: Command) -> None:
    assert command("run").code == 2
    told = command("run", "x.toml", "--outptu", "y")
    assert told.code == 2 and "No such option: --outptu" in told.err and "Traceback" not in told.err
    assert command("squeeze").code == 2


def test_the_module_runs_as_a_command_with_the_same_exit_code() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tokensqueeze.cli", "check", "gone.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "tokensqueeze: gone.toml: No such file or directory; name an existing TOML file\n"


@pytest.mark.parametrize(("verb", "missing"), [("check", "transformers"), ("run", "ray")])
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(settings: Path, verb: str, missing: str) -> None:
    # None in sys.modules is how Python itself says that a module can't be imported.
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from tokensqueeze.cli import main; main([{verb!r}, {str(settings)!r}])"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 2
    assert finished.stderr.startswith("tokensqueeze: ")
    assert finished.stderr.endswith(f" {missing} is not installed: pip install 'tokensqueeze[run]'\n")
    assert "Traceback" not in finished.stderr
