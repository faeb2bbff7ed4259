"""`tokensqueeze evaluate` as a user gives it: killed and run again, its figures against another way of counting them."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests.end_to_end.small_run import SECONDS, clean_environment, kill_with_descendants, temporary_folder
from tokensqueeze.cli import main
from tokensqueeze.engines.checkpoint import demo_model_dir, load_tokenizer
from tokensqueeze.schema import EvaluationTrace, ForcedTrace, Problem
from tokensqueeze.tables import Table

OPTIONS = ("-b", "demo", "--limit", "4", "--samples", "2", "--greedy", "--max-tokens", "120", "--thinking-budget", "10")
SETTINGS = ("--set", "per_shard=1")


@dataclass(frozen=True)
class Evaluation:
    output: Path
    more: tuple[str, ...] = field(default=())

    def start(self, folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tokensqueeze.cli", "evaluate", "demo", "--output", str(self.output)]
        return subprocess.Popen(
            [*command, *OPTIONS, *SETTINGS, *self.more],
            env=clean_environment() | {"TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def succeed(self) -> str:
        with temporary_folder() as folder, self.start(folder) as process:
            try:
                stdout, stderr = process.communicate(timeout=SECONDS)
            finally:
                kill_with_descendants(process.pid)
        assert process.returncode == 0, stdout + stderr
        return stdout

    def kill_after_first_part(self) -> None:
        with temporary_folder() as folder, self.start(folder) as process:
            try:
                deadline = time.monotonic() + SECONDS
                while not list(self.output.glob("tables/evaluation_demo/*/part-*")) and time.monotonic() < deadline:
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
            finally:
                kill_with_descendants(process.pid)

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads((self.output / "evaluation.json").read_text())

    def rows(self, table: str, row_type: type) -> list[Any]:
        return Table(self.output / self.figures["benchmarks"]["demo"]["tables"][table], row_type).rows()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """One that was killed in the middle and run again."""
    killed = Evaluation(tmp_path_factory.mktemp("evaluate") / "out")
    killed.kill_after_first_part()
    assert not (killed.output / "evaluation.json").exists()
    said = killed.succeed()
    assert re.search(r"evaluation_demo: .* shards of an earlier run kept", said), said
    assert "demo on demo: 4 problems, 12 traces, token budget 400" in said
    return killed


def test_a_killed_evaluation_goes_on_and_ends_as_one_that_was_not(evaluation: Evaluation, tmp_path: Path):
    undisturbed = Evaluation(tmp_path / "out")
    undisturbed.succeed()
    assert undisturbed.figures == evaluation.figures
    for table, row_type in (("problems", Problem), ("evaluation", EvaluationTrace), ("forced", ForcedTrace)):
        assert undisturbed.rows(table, row_type) == evaluation.rows(table, row_type)


def test_the_figures_are_those_of_the_rows_counted_another_way(evaluation: Evaluation):
    sampled = [row for row in evaluation.rows("evaluation", EvaluationTrace) if row.decoding == "sampled"]
    cell = evaluation.figures["benchmarks"]["demo"]["cells"]["sampled"]
    right = [row.verdict == "correct" for row in sampled]
    assert len(sampled) == cell["num_samples"] == 8
    assert cell["accuracy"] == pytest.approx(fmean(right))
    assert cell["length_all"] == pytest.approx(fmean(row.num_tokens for row in sampled))
    areas = [(1 - row.num_tokens / 400) * ok for row, ok in zip(sampled, right, strict=True)]
    assert cell["auc"] == pytest.approx(fmean(areas))
    solved = {row.problem_id for row, ok in zip(sampled, right, strict=True) if ok}
    assert cell["pass_at_k"]["2"]["value"] == pytest.approx(len(solved) / 4)


def test_lengths_are_tokens_of_the_models_own_tokenizer(evaluation: Evaluation):
    tokenizer = load_tokenizer(demo_model_dir())
    rows = evaluation.rows("evaluation", EvaluationTrace)
    for row in rows:
        ends = row.finish_reason == "stop"
        assert row.num_tokens == len(tokenizer(row.text, add_special_tokens=False).input_ids) + ends
        thinking = row.text[: row.text.rfind("</think>") + len("</think>")] if "</think>" in row.text else row.text
        assert row.thinking_tokens == len(tokenizer(thinking, add_special_tokens=False).input_ids)
        assert row.thinking_tokens + row.answer_tokens == row.num_tokens
    assert sum(row.num_tokens for row in rows) < sum(len(row.text) for row in rows), "characters would be more"


def test_a_forced_trace_goes_on_from_the_evaluations_own(evaluation: Evaluation):
    own = {row.trace_id: row for row in evaluation.rows("evaluation", EvaluationTrace)}
    forced = evaluation.rows("forced", ForcedTrace)
    assert len(forced) == 8 and any(row.was_forced for row in forced)
    for row in forced:
        drawn = own[row.trace_id.removesuffix("/10")]
        assert row.token_ids[:10] == drawn.token_ids[:10]
        assert row.was_forced == (drawn.thinking_tokens > 11), "ten tokens of thinking, and the one that ends it"
        assert row.was_forced or row.token_ids == drawn.token_ids


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo", "-b", "gsm9k"], "no benchmark is called 'gsm9k'; did you mean gsm8k?"),
        (["demo", "-b", "mine=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["nowhere", "-b", "demo"], "model.path: nowhere: no such directory"),
        (["demo", "-b", "demo", "--samples", "0"], "decoding.num_samples: 0, and decoding.greedy is off"),
        (["demo", "-b", "demo", "--set", "decoding.temprature=1"], "did you mean temperature?"),
        (["demo", "-b", "../x=demo:test"], "'../x' is no name"),
        (["http://127.0.0.1:9/v1", "-b", "demo"], "no server answers there"),
        (["http://me:secret@127.0.0.1:9/v1", "-b", "demo"], "a key in an address ends up in logs"),
        (["http://127.0.0.1:9/v1", "-b", "demo", "--thinking-budget", "9"], "forcing.thinking_budgets"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", *arguments, "--output", "out", "--set", "endpoint.max_retries=0"])
    said = capsys.readouterr().err
    assert exit.value.code in (1, 2)
    assert told in said and said.startswith("tokensqueeze: ") and "Traceback" not in said and "secret" not in said
    assert not Path("out", "evaluation.json").exists()
