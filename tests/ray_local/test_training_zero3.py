"""A model cut up by ZeRO-3 is trained, decoded and exported by two processes over gloo, and is never whole in either.

Without Ray: what is under test is what the workers do with each other.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing.spawn import start_processes
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.ray_local.word_tokenizer import word_tokenizer
from tokensqueeze.config import LoRASettings, TrainingSettings, VerifierSettings
from tokensqueeze.errors import TokenSqueezeError
from tokensqueeze.objectives.packing import pack
from tokensqueeze.schema import Problem
from tokensqueeze.training.export import tensor_infos
from tokensqueeze.training.training_log import DevRow

pytestmark = pytest.mark.slow

ANSWERS = range(5)
WORDS = ["so", "hence", "wait", "hmm", "then", "now"]
TOKENS = ["<pad>", "<eos>", "<think>", "</think>", *WORDS, *[f"q{i}" for i in ANSWERS], *[f"\\boxed{{{i}}}" for i in ANSWERS]]
SETTINGS = TrainingSettings(learning_rate=1e-4, dtype="float32", zero_stage=3, gradient_checkpointing=False)
STEPS = 4
SMALL_CUTS = {
    "stage3_max_live_parameters": 1_000_000,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 300_000,
}
"""DeepSpeed's own limits suit models of billions of parameters: the test's would fit into them whole."""


@dataclass(frozen=True)
class Base:
    folder: Path
    problems: list[Problem]

    @property
    def num_bytes(self) -> int:
        return sum(torch.Size(info.shape).numel() * 4 for info in tensor_infos(self.folder).values())


@dataclass(frozen=True)
class Training:
    """What the processes are to do, one after the other."""

    base_dir: Path
    problems: list[Problem]
    output_dir: Path
    settings: TrainingSettings


@dataclass
class Outcome:
    """What one process saw of a training."""

    losses: list[float] = field(default_factory=list)
    dev: list[dict[str, Any]] = field(default_factory=list)
    most_held: dict[str, int] = field(default_factory=dict)
    """Bytes of gathered parameters at one time, by what was going on."""
    largest_parameter: int = 0
    error: str = ""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A model that answers each problem after a number of words of its own, so that some workers finish early."""
    folder = tmp_path_factory.mktemp("base")
    word_tokenizer(TOKENS).save_pretrained(folder)
    problems = [Problem(f"p{i}", f"q{i}", str(i), f"q{i} <think>", _ids(f"q{i} <think>")) for i in ANSWERS]
    _taught_model(problems).save_pretrained(folder)
    return Base(folder, problems)


@dataclass(frozen=True)
class Run:
    """A group of processes, and what they saw: by training, then by rank."""

    folder: Path
    outcomes: dict[str, list[Outcome]]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return _weights(self.folder / name / "model")


@pytest.fixture(scope="module")
def one(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process that has the whole model."""
    folder = tmp_path_factory.mktemp("one")
    whole = _changed(zero_stage=0)
    return _run(1, folder, [_training(base, folder, "all", whole), _training(base, folder, "lora", _with_lora(whole))])


@pytest.fixture(scope="module")
def two(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("two")
    # The second problem, which the second worker has, leaves no room for an answer; the first worker has work for a while.
    too_long = [replace(p, prompt_token_ids=p.prompt_token_ids * (40 if p.problem_id == "p1" else 1)) for p in base.problems]
    trainings = [
        _training(base, folder, "all", SETTINGS),
        _training(base, folder, "no dev problems", SETTINGS, problems=[]),
        _training(base, folder, "lora", _with_lora(SETTINGS)),
        _training(base, folder, "lora at 1", _with_lora(_changed(zero_stage=1))),
        _training(base, folder, "lora at 2", _with_lora(_changed(zero_stage=2))),
        _training(base, folder, "too long at 2", _changed(zero_stage=2), problems=too_long),
        _training(base, folder, "too long at 3", SETTINGS, problems=too_long),
        _training(base, folder, "no room", SETTINGS, problems=[]),
    ]
    # A file stands where the folder of the half-written model is to be.
    (folder / "no room").mkdir()
    (folder / "no room" / ".model.tmp").write_text("in the way")
    return _run(2, folder, trainings)


def test_exported_weights_are_those_of_one_process(base: Base, one: Run, two: Run) -> None:
    assert tensor_infos(two.folder / "all" / "model") == tensor_infos(base.folder)
    before, expected = _weights(base.folder), one.weights("all")
    for name, tensor in two.weights("all").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
        assert (tensor - before[name]).abs().max() > 1e-4, f"{name} was not trained"


def test_dev_accuracy_is_that_of_one_process_and_known_to_all(one: Run, two: Run) -> None:
    (alone,) = one.outcomes["all"]
    # Problem i is answered by i + 1 words, </think>, the answer and <eos>.
    assert alone.dev[0] == asdict(DevRow(0, 1.0, sum(i + 4 for i in ANSWERS) / len(ANSWERS)))
    assert len(alone.dev) == STEPS
    assert [outcome.dev for outcome in two.outcomes["all"]] == [alone.dev, alone.dev]


def test_looking_at_the_dev_problems_changes_nothing_of_the_training(two: Run) -> None:
    looked, not_looked = two.outcomes["all"], two.outcomes["no dev problems"]
    assert not_looked[0].dev == []
    assert [outcome.losses for outcome in looked] == [outcome.losses for outcome in not_looked]
    expected = two.weights("no dev problems")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in two.weights("all").items())


@pytest.mark.parametrize("training", ["all", "lora"])
def test_no_worker_ever_holds_the_whole_model(base: Base, two: Run, training: str) -> None:
    for outcome in two.outcomes[training]:
        assert outcome.most_held.keys() == {"load", "train", "dev", "export"}
        for what, held in outcome.most_held.items():
            # Something was gathered, or nothing was measured.
            assert outcome.largest_parameter <= held < base.num_bytes / 3, what


@pytest.mark.parametrize("training", ["lora at 1", "lora at 2", "lora"])
def test_adapters_trained_by_two_merge_into_the_model_that_one_process_makes(
    base: Base, one: Run, two: Run, training: str
) -> None:
    assert tensor_infos(two.folder / training / "model") == tensor_infos(base.folder)
    before, expected = _weights(base.folder), one.weights("lora")
    for name, tensor in two.weights(training).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
        assert ("_proj" in name) == bool((tensor - before[name]).abs().max() > 1e-4), name
    (alone,) = one.outcomes["lora"]
    for outcome in two.outcomes[training]:
        assert outcome.losses == pytest.approx(alone.losses, rel=1e-4)
        assert outcome.dev == alone.dev
    assert alone.losses[-1] < alone.losses[0]


@pytest.mark.parametrize("training", ["too long at 2", "too long at 3"])
def test_error_while_one_worker_decodes_is_raised_by_all(two: Run, training: str) -> None:
    error = "EngineError: request 0: its prompt has 80 tokens and the model's context 64; shorten the prompt"
    assert [outcome.error for outcome in two.outcomes[training]] == [error, error]


def test_export_that_fails_on_the_first_worker_is_an_error_on_all(two: Run) -> None:
    first, second = (outcome.error for outcome in two.outcomes["no room"])
    assert first == second
    assert first.startswith("StorageError: ")
    assert "free some space and run the same command again" in first
    assert not (two.folder / "no room" / "model").exists()


def _training(
    base: Base, folder: Path, name: str, settings: TrainingSettings, *, problems: list[Problem] | None = None
) -> Training:
    return Training(base.folder, base.problems if problems is None else problems, folder / name, settings)


def _changed(**changes: object) -> TrainingSettings:
    return SETTINGS.model_copy(update=changes)


def _with_lora(settings: TrainingSettings) -> TrainingSettings:
    return settings.model_copy(update={"lora": LoRASettings(rank=4), "learning_rate": 1e-3})


def _run(num_workers: int, folder: Path, trainings: Sequence[Training]) -> Run:
    """Have processes do trainings together."""
    start_processes(_worker, args=(num_workers, folder, trainings), nprocs=num_workers, start_method="spawn")
    outcomes = {
        training.output_dir.name: [
            Outcome(**json.loads((training.output_dir / f"outcome-{rank}.json").read_text())) for rank in range(num_workers)
        ]
        for training in trainings
    }
    return Run(folder, outcomes)


def _worker(rank: int, num_workers: int, folder: Path, trainings: Sequence[Training]) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "WORLD_SIZE": str(num_workers), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_workers)
    for training in trainings:
        training.output_dir.mkdir(exist_ok=True)
        _PARAMETERS.clear()
        outcome = _train(training)
        (training.output_dir / f"outcome-{rank}.json").write_text(json.dumps(asdict(outcome)))
    dist.barrier()
    dist.destroy_process_group()


def _train(training: Training) -> Outcome:
    """Load, take some steps of plain SFT, with a look at the dev problems before each, and export."""
    from tokensqueeze.training import zero
    from tokensqueeze.training.dev_accuracy import measure_dev_accuracy
    from tokensqueeze.training.export import export_model

    zero.quieten()
    settings = training.settings
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    usual_config = zero.deepspeed_config

    def small_cuts(settings: TrainingSettings) -> dict[str, Any]:
        config = usual_config(settings)
        config["zero_optimization"] |= SMALL_CUTS if settings.zero_stage == 3 else {}
        return config

    zero.deepspeed_config = small_cuts
    outcome = Outcome()
    with _most_held(outcome, "load"):
        model = zero.load_policy(training.base_dir, settings)
        engine, _ = zero.start_engine(model, settings)
    shapes = [getattr(parameter, "ds_shape", parameter.shape) for parameter in model.parameters()]
    outcome.largest_parameter = 4 * max(torch.Size(shape).numel() for shape in shapes)

    rng = random.Random(0)
    texts = [(f"q{i} <think>", f"{' '.join(rng.choices(WORDS, k=i + 2))} </think> \\boxed{{{i}}} <eos>") for i in range(4)]
    packed = pack([(_ids(prompt), [_ids(completion)]) for prompt, completion in texts[rank::num_workers]])
    tokens = sum(len(_ids(completion)) for _, completion in texts)
    try:
        for step in range(STEPS):
            if training.problems:
                with _most_held(outcome, "dev"):
                    row = measure_dev_accuracy(
                        engine,
                        model,
                        model_dir=training.base_dir,
                        problems=training.problems,
                        max_tokens=20,
                        think_end="</think>",
                        verifier=VerifierSettings(),
                        step=step,
                    )
                outcome.dev.append(asdict(row))
            with _most_held(outcome, "train"):
                loss = -engine(packed).sum() / tokens
                engine.set_gradient_accumulation_boundary(True)
                engine.backward(loss * num_workers, scale_wrt_gas=False)
                engine.step()
            whole = loss.detach().clone()
            dist.all_reduce(whole)
            outcome.losses.append(whole.item())
        with _most_held(outcome, "export"):
            export_model(model, base_dir=training.base_dir, target_dir=training.output_dir / "model", gathered_bytes=2**20)
    except TokenSqueezeError as error:
        outcome.error = f"{type(error).__name__}: {error}"
    return outcome


@contextmanager
def _most_held(outcome: Outcome, what: str) -> Iterator[None]:
    """Measure how much is gathered whenever DeepSpeed lets go of something: between these times it only grows."""
    from deepspeed.runtime.zero import partition_parameters

    free = partition_parameters.free_param

    def measured(parameter: Any) -> None:
        _PARAMETERS[parameter.ds_id] = parameter
        held = sum(known.data.nbytes for known in _PARAMETERS.values())
        outcome.most_held[what] = max(outcome.most_held.get(what, 0), held)
        free(parameter)

    partition_parameters.free_param = measured
    try:
        yield
    finally:
        partition_parameters.free_param = free


_PARAMETERS: dict[int, torch.nn.Parameter] = {}
"""All that DeepSpeed has cut up in this process."""


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _ids(text: str) -> list[int]:
    return [TOKENS.index(token) for token in text.split()]


def _taught_model(problems: Sequence[Problem]) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Qwen3Config(
        # DeepSpeed leaves tensors below 100,000 numbers whole.
        vocab_size=512,
        hidden_size=384,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=64,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    texts = [f"{p.prompt} {'so ' * (i + 1)}</think> \\boxed{{{p.gold_answer}}} <eos>" for i, p in enumerate(problems)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    longest = max(len(_ids(text)) for text in texts)
    ids = torch.tensor([_ids(text) + [1] * (longest - len(_ids(text))) for text in texts])
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()
