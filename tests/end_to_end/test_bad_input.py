"""What a user reads who has made a mistake: which thing, which value, the way out; no traceback, nothing half-written."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import ray

from tests.end_to_end.small_run import SMALL, SmallRun, half_written
from tokensqueeze.cli import main
from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.pipeline.plan import RunPlan
from tokensqueeze.pipeline.run import write_problems
from tokensqueeze.schema import Trace
from tokensqueeze.stages.stage import ShardActor, ShardReport
from tokensqueeze.verifiers.boxed import last_boxed

GOOD = {"id": "one", "question": "1 + 1?", "answer": "2"}


@dataclass(frozen=True)
class Told:
    """What a refused command says, behind `tokensqueeze: `."""

    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass
class Refusal:
    """Runs the command line in this process and expects to be refused before anything starts."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def problems(self, *rows: object) -> Path:
        path = self.folder / "mine.jsonl"
        path.write_text("".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return path

    def model(self, without: Callable[[Path], bool] = lambda path: False) -> Path:
        """A copy of the demo's model that lacks some files."""
        lacking = self.folder / "lacking"
        lacking.mkdir()
        for path in demo_model_dir().iterdir():
            if path.is_file() and not without(path):
                shutil.copy(path, lacking)
        return lacking

    def of(self, *overrides: str, options: tuple[str, ...] = (), toml: str | None = None) -> Told:
        settings = self.folder / "mine.toml"
        settings.write_text(f'problems.train.path = "{self.problems(GOOD)}"\n' if toml is None else toml)
        parts = [part for override in overrides for part in ("--set", override)]
        with pytest.raises(SystemExit) as exit:
            main(["run", str(settings), "--output", str(self.output), *parts, *options])
        told = self.capsys.readouterr()
        assert exit.value.code == 2
        assert told.out == ""
        assert "Traceback" not in told.err
        assert not self.output.is_dir()
        assert told.err.startswith("tokensqueeze: ")
        return Told(told.err.removeprefix("tokensqueeze: "))

    def one_mistake(self, *overrides: str, toml: str | None = None) -> str:
        first, mistake = self.of(*overrides, toml=toml).lines
        assert first == "the settings have 1 mistake:"
        return mistake.strip()

    def of_problems(self, *rows: object) -> str:
        path = self.problems(*rows)
        return self.one_mistake(toml=f'problems.train.path = "{path}"\n').replace(str(path), "mine.jsonl")


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Ray for all runs of this process: a run takes the one that is there."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, capsys)


def test_missing_settings_file(refusal: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["run", str(tmp_path / "none.toml")])
    assert exit.value.code == 2
    assert (
        capsys.readouterr().err
        == f"tokensqueeze: {tmp_path}/none.toml: No such file or directory; name an existing TOML file\n"
    )


def test_malformed_settings_file(refusal: Refusal) -> None:
    (line,) = refusal.of(toml="[problems\n").lines
    assert re.search(r"mine\.toml: not valid TOML: .*line 1", line)


def test_missing_problem_file(refusal: Refusal) -> None:
    mistake = refusal.one_mistake("problems.train.path=nowhere.jsonl")
    assert mistake.startswith("problems.train: nowhere.jsonl: no such file; name a JSONL, Parquet, CSV or JSON file")


def test_malformed_problem_row(refusal: Refusal) -> None:
    mistake = refusal.of_problems(GOOD, '{"question": "1 + 2?", ')
    assert mistake.startswith("problems.train: mine.jsonl line 2: not valid JSON (")
    assert mistake.endswith("; put one whole object on each line")


def test_row_without_an_answer(refusal: Refusal) -> None:
    assert refusal.of_problems(GOOD, {"id": "two", "question": "1 + 2?"}) == (
        'problems.train: mine.jsonl line 2: no "answer"; the row has "id", "question". Mend the row, or name another column '
        "with problems.train.answer_column"
    )


def test_duplicate_ids(refusal: Refusal) -> None:
    assert refusal.of_problems(GOOD, GOOD | {"id": "two"}, GOOD) == (
        "problems.train: mine.jsonl line 3: the id 'one' is that of line 1 too; make the ids distinct, or name another "
        "column with problems.train.id_column"
    )


def test_empty_problem_file(refusal: Refusal) -> None:
    assert "no problem in it" in refusal.of_problems()


def test_unknown_setting_with_the_one_that_was_meant(refusal: Refusal) -> None:
    assert refusal.one_mistake("sampling.temprature=0.5") == ("sampling.temprature: unknown setting; did you mean temperature?")


def test_all_wrong_settings_are_listed_at_once(refusal: Refusal) -> None:
    first, *mistakes = refusal.of("sampling.num_samples=0", "training.epochs=many", "engine.kind=tgi", "colour=1").lines
    assert first == "the settings have 4 mistakes:"
    keys = ["sampling.num_samples", "training.epochs", "engine.kind", "colour"]
    assert sorted(mistake.strip().split(":")[0] for mistake in mistakes) == sorted(keys)
    assert all(value in "\n".join(mistakes) for value in ("it is 0", "it is 'many'", "it is 'tgi'"))


def test_all_wrong_files_and_models_are_listed_at_once(refusal: Refusal) -> None:
    overrides = ("model.path=none", "problems.train.path=none.jsonl", 'problems.test={path="none.parquet"}')
    first, *mistakes = refusal.of(*overrides).lines
    assert first == "the settings have 3 mistakes:"
    assert [mistake.strip().split(": no such")[0] for mistake in mistakes] == [
        "model.path: none",
        "problems.train: none.jsonl",
        "problems.test: none.parquet",
    ]


def test_unknown_method(refusal: Refusal) -> None:
    (line,) = refusal.of("method=squeeze").lines
    assert line.startswith("method: 'squeeze' is not a method; choose from tokensqueeze, ")


@pytest.mark.parametrize(
    ("without", "lack", "way_out"),
    [
        ("tokenizer", "no tokenizer in it", "put the base model's tokenizer files beside the weights"),
        ("chat_template", "no chat template in it", "add chat_template.jinja"),
        ("model.safetensors", "no *.safetensors in it", "save the model with save_pretrained"),
        ("config.json", "no config.json in it", "so it is no Hugging Face model directory"),
    ],
)
def test_model_directory_that_lacks_something(refusal: Refusal, without: str, lack: str, way_out: str) -> None:
    folder = refusal.model(lambda path: path.name.startswith(without))
    mistake = refusal.one_mistake(f"model.path={folder}")
    assert mistake.startswith(f"model.path: {folder}: {lack}")
    assert way_out in mistake


def test_prompt_longer_than_the_context(refusal: Refusal) -> None:
    context = json.loads((demo_model_dir() / "config.json").read_text())["max_position_embeddings"]
    mistake = refusal.of_problems(GOOD, {"id": "endless", "question": "1 + 1 " * context, "answer": "2"})
    assert re.match(
        rf"problems\.train: problem 'endless': its prompt has \d+ tokens and the model's context {context}", mistake
    )
    assert mistake.endswith('or set problems.too_long = "drop"')


def test_output_with_a_file_in_the_way(refusal: Refusal) -> None:
    refusal.output.write_text("mine")
    (line,) = refusal.of().lines
    assert line == f"{refusal.output}: File exists; choose another --output"
    assert refusal.output.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_folder_that_is_read_only(refusal: Refusal) -> None:
    refusal.folder.chmod(0o500)
    try:
        (line,) = refusal.of().lines
    finally:
        refusal.folder.chmod(0o700)
    assert line == f"{refusal.output}: Permission denied; choose another --output"


def test_unknown_stage(refusal: Refusal) -> None:
    (line,) = refusal.of(options=("--until", "dinner")).lines
    assert line == (
        "--until dinner: no such stage; choose from sample, verify, select, propose, accept, pair, score, train, evaluate"
    )


@pytest.mark.slow
def test_run_without_a_correct_trace_says_why_and_leaves_whole_tables(
    one_ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = SmallRun(tmp_path, (*SMALL, "problems.train.limit=2", "sampling.max_tokens=1"))
    _sample_here(run.plan)
    assert _refused_on_the_way(run, capfd) == (
        "tokensqueeze: no problem has a correct trace, so there is nothing to learn from: 0 correct, 12 incorrect, "
        "0 no_answer, 0 unverifiable (12 incorrect: truncated). Does the prompt ask for \\boxed{} (problems.instruction)? Is "
        "sampling.max_tokens large enough? If the model can't solve these problems, take easier ones\n"
    )


@pytest.mark.slow
def test_run_without_a_pair_says_why_and_leaves_whole_tables(
    one_ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The answer that the model gives first is made the right one: a single trace of each problem then leaves nothing to reject.
    overrides = (*SMALL, "sampling.num_samples=1", 'rewriter={name="none"}', 'objective={name="dpo"}')
    plan = SmallRun(tmp_path / "first", overrides).plan
    traces = _sample_here(plan)
    questions = {problem.problem_id: problem.question for problem in plan.problem_sets["train"].problems}
    answered = [
        {"id": trace.problem_id, "question": questions[trace.problem_id], "answer": answer}
        for trace in traces
        if trace.finish_reason == "stop" and (answer := last_boxed(trace.text))
    ]
    assert answered
    path = tmp_path / "answered.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in answered))
    run = SmallRun(tmp_path / "run", (*overrides, f"problems.train.path={path}"))
    assert _sample_here(run.plan) == [trace for trace in traces if trace.problem_id in {row["id"] for row in answered}]
    assert _refused_on_the_way(run, capfd) == (
        f"tokensqueeze: no preference pair is left: {len(answered)} problems dropped: no incorrect trace. Draw more traces "
        "(sampling.num_samples = 1), take harder problems, or choose an objective that needs no rejected trace "
        '(objective.name = "sft")\n'
    )


def _sample_here(plan: RunPlan) -> list[Trace]:
    """Do what the first stage's workers do, in this process: the run then finds the parts of its first table."""
    write_problems(plan.problem_sets["train"])
    worker = ShardActor(plan.sample)
    for shard in range(plan.sample.num_shards):
        told = worker({name: [value] for name, value in asdict(ShardReport(shard)).items()})
        assert told["error"] == [""]
    return [trace for shard in range(plan.sample.num_shards) for trace in plan.sample.output.read_part(shard)]


def _refused_on_the_way(run: SmallRun, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()  # What loading the model told.
    with pytest.raises(SystemExit) as exit:
        main(run.arguments)
    told = capfd.readouterr()
    assert exit.value.code == 2
    assert "Traceback" not in told.out + told.err
    assert half_written(run.output / "tables") == []
    assert not (run.output / "model").exists()
    return told.err
