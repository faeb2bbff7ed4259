"""Settings: a TOML file and overrides, checked whole, every mistake listed with its key and the way out."""

from pathlib import Path
from typing import Any

import pytest

from tokensqueeze.config import (
    DPO,
    AdaptiveDepth,
    DPOLengthSFT,
    FixedQuantile,
    KLBound,
    NoRewrite,
    PoolSettings,
    Reliable,
    Settings,
    check_settings,
)
from tokensqueeze.errors import SettingsError
from tokensqueeze.settings_file import read_settings_file

WHOLE: dict[str, Any] = {
    "problems": {"train": {"path": "demo:train"}},
    "selector": {"name": "adaptive_depth"},
    "rewriter": {"name": "kl_bound"},
    "objective": {"name": "dpo_length_sft"},
}


def mistakes(**sections: Any) -> list[str]:
    """The lines of what is told about settings that are whole but for these sections."""
    with pytest.raises(SettingsError) as caught:
        check_settings(WHOLE | sections)
    first, *listed = str(caught.value).splitlines()
    assert first == f"the settings have {'1 mistake' if len(listed) == 1 else f'{len(listed)} mistakes'}:"
    return [line.strip() for line in listed]


def test_infinity_is_no_setting() -> None:
    [said] = mistakes(verifier={"timeout_seconds": float("inf")})
    assert said.startswith("verifier.timeout_seconds: input should be a finite number")


def test_defaults_are_the_papers() -> None:
    settings = check_settings(WHOLE)
    sampling, rewriter, objective = settings.sampling, settings.rewriter, settings.objective
    assert (sampling.num_samples, sampling.temperature, sampling.top_p, sampling.max_tokens) == (64, 0.9, 1.0, 8192)
    assert isinstance(settings.selector, AdaptiveDepth) and settings.selector.alpha == 0.2
    assert isinstance(rewriter, KLBound)
    assert (rewriter.num_candidates, rewriter.temperature, rewriter.kl_bound) == (64, 1.0, 0.005)
    assert (rewriter.window_tokens, rewriter.kl_reduction) == (512, "mean")
    assert settings.pairing.max_pairs_per_problem == 64 and settings.pairing.longer_correct_ratio is None
    assert isinstance(objective, DPOLengthSFT)
    assert (objective.beta, objective.length_weight, objective.length_margin, objective.dpo_weight) == (0.1, 1, "target", 0.5)
    training, evaluation = settings.training, settings.evaluation
    assert (training.learning_rate, training.batch_size, training.epochs, training.max_length) == (5e-6, 128, 1, 9000)
    assert (training.schedule, training.warmup_ratio) == ("cosine", 0.03)
    assert (evaluation.temperature, evaluation.top_p, evaluation.num_samples) == (0.6, 0.95, 16)
    assert (evaluation.max_tokens, evaluation.token_budget) == (32768, 32768)


def test_the_reliable_rewriters_defaults_are_those_it_was_measured_with() -> None:
    rewriter = check_settings(WHOLE | {"rewriter": {"name": "reliable"}}).rewriter
    assert isinstance(rewriter, Reliable)
    assert (rewriter.num_candidates, rewriter.temperature, rewriter.min_reliability) == (32, 1.0, 0.9)


def test_a_choice_is_picked_by_its_name() -> None:
    settings = check_settings(
        WHOLE
        | {"selector": {"name": "fixed_quantile", "quantile": 0.3}, "rewriter": {"name": "none"}, "objective": {"name": "dpo"}}
    )
    assert settings.selector == FixedQuantile(quantile=0.3)
    assert settings.rewriter == NoRewrite()
    assert settings.objective == DPO(beta=0.1)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"sampling": {"num_sample": 3}}, "sampling.num_sample: unknown setting; did you mean num_samples?"),
        ({"smapling": {}}, "smapling: unknown setting; did you mean sampling?"),
        (
            {"verifier": {"xyz": 1}},
            "verifier.xyz: unknown setting; known here: answer_forms, code, timeout_seconds",
        ),
        (
            {"problems": {"train": {"path": "a", "limt": 5}}},
            "problems.train.limt: unknown setting; did you mean limit?",
        ),
        (
            {"problems": {"train": {"path": "a"}, "dev": {"path": "a", "limt": 5}}},
            "problems.dev.limt: unknown setting; did you mean limit?",
        ),
        (
            {"selector": {"name": "adaptive_depth", "alpah": 0.1}},
            "selector.alpah: unknown setting; did you mean alpha?",
        ),
        # This rewriter is called like one of its own settings.
        (
            {"rewriter": {"name": "kl_bound", "num_candidate": 3}},
            "rewriter.num_candidate: unknown setting; did you mean num_candidates?",
        ),
        (
            {"rewriter": {"name": "kl_bound", "min_reliability": 0.9}},
            "rewriter.min_reliability: unknown setting; known here: bound_scale, check_rest, kl_bound, kl_reduction, name, "
            "num_candidates, seed, temperature, window_tokens",
        ),
        ({"rewriter": {"name": "none", "seed": 3}}, "rewriter.seed: unknown setting; known here: name"),
        ({"objective": {"name": "dpo", "gamma": 3}}, "objective.gamma: unknown setting; known here: beta, name"),
    ],
)
def test_an_unknown_setting_is_told_with_its_key_and_what_there_is(sections: dict[str, Any], told: str) -> None:
    assert mistakes(**sections) == [told]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"problems": {}}, "problems.train: missing; this setting has no default"),
        ({"problems": {"train": {}}}, "problems.train.path: missing; this setting has no default"),
        (
            {"rewriter": {"name": "kl_bond"}},
            "rewriter.name: 'kl_bond' is not one of 'none', 'kl_bound', 'reliable'",
        ),
        ({"objective": {}}, "objective.name: missing; it picks the kind"),
        (
            {"sampling": {"temperature": 0}},
            "sampling.temperature: input should be greater than 0; it is 0",
        ),
        (
            {"rewriter": {"name": "kl_bound", "kl_bound": -1.0}},
            "rewriter.kl_bound: input should be greater than 0; it is -1.0",
        ),
        (
            {"training": {"schedule": "cosin"}},
            "training.schedule: input should be 'cosine', 'linear' or 'constant'; it is 'cosin'",
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_itself(sections: dict[str, Any], told: str) -> None:
    assert mistakes(**sections) == [told]


def test_all_mistakes_are_listed_at_once_and_none_loses_its_section_to_a_choices_name() -> None:
    # The name of this unknown selector is that of a section.
    found = mistakes(selector={"name": "model"}, model={"pth": "x"}, engine={"threads": 0})
    assert len(found) == 3
    assert "model.pth: unknown setting; did you mean path?" in found
    assert "engine.threads: input should be greater than or equal to 1; it is 0" in found
    assert any(line.startswith("selector.name: 'model' is not one of 'adaptive_depth'") for line in found)


def test_settings_that_clash_are_told_with_both_values() -> None:
    found = mistakes(
        training={"offload": "optimizer_and_parameters", "zero_stage": 2, "min_workers": 3, "num_workers": 2, "export": "best"},
        evaluation={"max_tokens": 500, "token_budget": 400},
        engine={"kind": "vllm", "tensor_parallel_size": 4},
        resources={"gpus_per_worker": 2},
    )
    assert found == [
        "training.offload: 'optimizer_and_parameters' needs training.zero_stage = 3 or more",
        "training.min_workers: 3 is over training.num_workers = 2",
        'training.export: "best" needs dev problems to tell by; set problems.dev, or export the last',
        "evaluation.max_tokens: 500 is over evaluation.token_budget = 400; a trace longer than the budget has no place "
        "under the curve",
        "engine.tensor_parallel_size: 4 GPUs, but resources.gpus_per_worker = 2",
    ]


def test_settings_that_just_fit_do_not_clash() -> None:
    settings = check_settings(
        WHOLE
        | {
            "training": {"batch_size": 12, "num_workers": 5, "offload": "optimizer", "zero_stage": 1},
            "evaluation": {"max_tokens": 400, "token_budget": 400},
            "engine": {"kind": "vllm", "tensor_parallel_size": 2},
            "resources": {"gpus_per_worker": 2},
        }
    )
    assert settings.training.batch_size == 12


def test_a_stages_pool_is_the_shared_one_but_for_what_its_own_table_gives() -> None:
    resources = check_settings(
        WHOLE
        | {
            "resources": {
                "workers": 2,
                "cpus_per_worker": 0.5,
                "propose": {"workers": 8, "max_workers": 32, "gpus_per_worker": 1},
                "verify": {"max_workers": 4},
            }
        }
    ).resources
    assert resources.pool("sample") == PoolSettings(workers=2, cpus_per_worker=0.5)
    assert resources.pool("propose") == PoolSettings(workers=8, max_workers=32, cpus_per_worker=0.5, gpus_per_worker=1)
    assert resources.pool("verify") == PoolSettings(workers=2, max_workers=4, cpus_per_worker=0.5)


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"workers": 4, "max_workers": 2}, ["resources.workers: 4 is over resources.max_workers = 2"]),
        ({"workers": 4, "accept": {"max_workers": 2}}, ["resources.workers: 4 is over resources.accept.max_workers = 2"]),
        ({"max_workers": 4, "pair": {"workers": 5}}, ["resources.pair.workers: 5 is over resources.max_workers = 4"]),
        (
            {"propose": {"workers": 9, "max_workers": 8}},
            ["resources.propose.workers: 9 is over resources.propose.max_workers = 8"],
        ),
        ({"propose": {"worker": 9}}, ["resources.propose.worker: unknown setting; did you mean workers?"]),
        ({"proposes": {"workers": 9}}, ["resources.proposes: unknown setting; did you mean propose?"]),
        ({"accept": {"workers": 0}}, ["resources.accept.workers: input should be greater than or equal to 1; it is 0"]),
    ],
)
def test_pools_that_cannot_be_are_told_with_the_keys_they_come_from(resources: dict[str, Any], told: list[str]) -> None:
    assert mistakes(resources=resources) == told


def test_an_engine_must_fit_the_gpus_of_every_stage_that_generates() -> None:
    vllm = {"kind": "vllm", "tensor_parallel_size": 2}
    test = {"problems": {"train": {"path": "demo:train"}, "test": {"path": "demo:test"}}}
    pools = {"sample": {"gpus_per_worker": 2}, "propose": {"gpus_per_worker": 1}, "evaluate": {"gpus_per_worker": 0}}
    told = "engine.tensor_parallel_size: 2 GPUs, but resources.{}.gpus_per_worker = {}"
    assert mistakes(engine=vllm, resources=pools, **test) == [told.format("propose", 1), told.format("evaluate", 0)]
    # Without a test split nothing is evaluated, and without a rewriter nothing proposed; scoring does not take the engine.
    assert mistakes(engine=vllm, resources=pools) == [told.format("propose", 1)]
    unproposed = {"engine": vllm, "resources": pools | {"accept": {"gpus_per_worker": 1}}, "rewriter": {"name": "none"}}
    assert check_settings(WHOLE | unproposed).engine.tensor_parallel_size == 2


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        check_settings(WHOLE).sampling.num_samples = 3


def test_a_file_is_read_and_overrides_are_laid_over_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[sampling]\nnum_samples = 4\ntemperature = 0.5\n[problems]\ntrain = { path = "a.jsonl" }\n')
    values = read_settings_file(
        path,
        [
            "sampling.num_samples=8",
            "training.learning_rate=2e-4",
            "problems.train.path=demo:train",
            "method=shortest_sft",
            'problems.instruction="x = 3"',
            "model.think_end=</think>",
            "problems.train.limit=1",
            "problems.train.limit=2",
        ],
    )
    assert values == {
        "sampling": {"num_samples": 8, "temperature": 0.5},
        "training": {"learning_rate": 2e-4},
        "problems": {"train": {"path": "demo:train", "limit": 2}, "instruction": "x = 3"},
        "method": "shortest_sft",
        "model": {"think_end": "</think>"},
    }


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sampling.num_samples", "--set sampling.num_samples: write it as section.key=value"),
        ("=3", "--set =3: write it as section.key=value"),
        ("sampling..seed=3", r"--set sampling\.\.seed=3: write it as"),
        ("sampling.seed.x=3", "--set sampling.seed.x=3: 'seed' is a value, not a section"),
    ],
)
def test_a_malformed_override_is_told(tmp_path: Path, override: str, told: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[sampling]\nseed = 1\n")
    with pytest.raises(SettingsError, match=told):
        read_settings_file(path, [override])


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml: No such file or directory; name an existing TOML file"):
        read_settings_file(tmp_path / "gone.toml")
    with pytest.raises(SettingsError, match="Is a directory"):
        read_settings_file(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text("sampling = {")
    with pytest.raises(SettingsError, match=r"run\.toml: not valid TOML"):
        read_settings_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"run\.toml: not valid TOML"):
        read_settings_file(path)


def test_what_check_prints_reads_back_as_the_same_settings() -> None:
    settings = check_settings(WHOLE)
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_a_fraction_of_a_sample_is_refused_not_rounded(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[problems]\ntrain = { path = "demo:train" }\n')
    values = WHOLE | read_settings_file(path, ["sampling.num_samples=2.5"])
    with pytest.raises(SettingsError, match=r"sampling\.num_samples: input should be a valid integer"):
        check_settings(values)
