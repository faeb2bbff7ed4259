"""`tokensqueeze verify` as a user runs it: a command of its own, killed, and run again."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.small_run import clean_environment, kill_with_descendants, still_alive
from tests.end_to_end.small_run import descendants as descendants_of
from tokensqueeze.cli import main

ROWS = 400
"""More than one batch of them."""
SECONDS = 120


def write_rows(folder: Path, gold: Callable[[int], str], count: int) -> Path:
    """Every third answer is wrong."""
    path = folder / "mine.jsonl"
    rows = [{"gold": gold(n), "response": f"\\boxed{{{gold(n + (n % 3 == 0))}}}"} for n in range(1, count + 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tokensqueeze.cli", *options(path)],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def options(path: Path) -> list[str]:
    return ["verify", str(path), "--gold-column", "gold", "--response-column", "response", "--workers", "1"]


def test_killed_and_run_again_it_goes_on_and_leaves_no_process_behind(tmp_path: Path) -> None:
    # Not the same text as the gold answer: each takes Math-Verify its time.
    turns = iter([lambda n: f"\\sqrt{{{n}}} + 7", lambda n: f"7 + \\sqrt{{{n}}}"] * ROWS)
    path = write_rows(tmp_path, lambda n: next(turns)(n), ROWS)
    partial = tmp_path / ".mine.verified.jsonl.partial"
    with start(path) as process:
        deadline = time.monotonic() + SECONDS
        while not (partial.exists() and len(partial.read_bytes().splitlines()) > 1):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        children = descendants_of(process.pid)
        process.send_signal(signal.SIGKILL)
    assert children
    assert not still_alive(children, seconds=20)
    assert not (tmp_path / "mine.verified.jsonl").exists()

    with start(path) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            kill_with_descendants(process.pid)
    assert (process.returncode, out) == (0, "")
    assert f"{ROWS} rows, " in err and "of them judged by an earlier call" in err
    rows = [json.loads(line) for line in (tmp_path / "mine.verified.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["incorrect" if n % 3 == 0 else "correct" for n in range(1, ROWS + 1)]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["mine.jsonl", "mine.verified.jsonl"]


def test_the_summary_says_how_many_of_which_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path, str, 3)
    path.write_text(path.read_text() + '{"gold": "1"}\n')
    main_done(options(path))
    told = capsys.readouterr()
    first, *lines = told.err.splitlines()
    assert first.startswith("4 rows, 4 in ") and first.endswith(" verdicts/s")
    assert lines == [
        "  correct               2",
        "  incorrect             1",
        "  no_answer             0",
        "  unverifiable          1",
        "causes:",
        "          1  unverifiable: no_response",
        f"written: {tmp_path}/mine.verified.jsonl",
    ]


def test_stdout_gets_the_rows_and_nothing_else(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = write_rows(tmp_path, str, 3)
    main_done([*options(path), "--output", "-"])
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [row["verdict"] for row in rows] == ["correct", "correct", "incorrect"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kind", "poem"], "--kind poem: no such kind; choose from math, choice, code"),
        (["--timeout-seconds", "0"], "--timeout-seconds 0.0: input should be greater than 0"),
        (["--min-isolation", "none"], "--min-isolation none: input should be 'rlimits' or 'namespaces'"),
        (["--think-end", ""], "--think-end: it is empty; leave it out where responses have no thinking block"),
        (["--output", "out.txt"], "out.txt: the suffix '.txt' says neither JSONL nor Parquet; name it .jsonl or .parquet"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    path = write_rows(tmp_path, str, 3)
    with pytest.raises(SystemExit) as exit:
        main([*options(path), *arguments])
    assert exit.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith(f"tokensqueeze: {told}")
    assert list(tmp_path.iterdir()) == [path]


def main_done(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert not exit.value.code
