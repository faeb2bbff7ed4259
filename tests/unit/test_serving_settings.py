"""The server's settings: from options, from a file, both; every clash told; what Serve is asked for in consequence."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tokensqueeze.cli import app
from tokensqueeze.errors import SettingsError
from tokensqueeze.serving.auth import key_digest
from tokensqueeze.serving.deployment_options import engine_options
from tokensqueeze.serving.deployments import deployment_name
from tokensqueeze.serving.settings import ServeSettings, check_serve_settings, is_loopback, serve_settings

KEY = {"name": "ann", "sha256": key_digest("tsq-one")}


def settings(file: Path | None = None, **said: Any) -> ServeSettings:
    nothing: dict[str, Any] = {"model": None, "base": None, "name": None, "each": {}, "server": {}, "overrides": []}
    return serve_settings(file, **nothing | said)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"model": "demo"}, ["demo"]),
        ({"model": "runs/mine/model"}, ["mine"]),
        ({"model": "models/Qwen3-4B"}, ["Qwen3-4B"]),
        ({"model": "runs/demo/model", "base": "demo"}, ["demo-base", "demo"]),
        ({"model": "runs/demo/model", "base": "demo", "name": "squeezed"}, ["demo", "squeezed"]),
    ],
)
def test_models_are_named_after_their_folders_unless_told_otherwise(said: dict[str, Any], names: list[str]):
    assert settings(**said).model_names() == names


def test_options_are_laid_over_a_file(tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text('port = 9000\n[[models]]\npath = "demo"\nengine = { max_batch_size = 8 }\n[limits]\nmax_choices = 3\n')
    found = settings(
        file,
        each={"engine": {"threads": 2, "kind": None}},
        server={"port": 9001, "host": None},
        overrides=["limits.max_queued=5"],
    )
    assert (found.port, found.host, found.limits.max_choices, found.limits.max_queued) == (9001, "127.0.0.1", 3, 5)
    assert (found.models[0].engine.max_batch_size, found.models[0].engine.threads) == (8, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models = 5", "models: input should be a valid list"),
        ('models = ["demo"]', "models.0: "),
        ('[[models]]\npath = "demo"\nengine = "vllm"', "models.0.engine: "),
        ("models = []", "models: list should have at least 1 item"),
        ("[limits]\nmax_choices = 0\n[[models]]\n", "limits.max_choices: input should be greater"),
    ],
)
def test_a_file_of_the_wrong_shape_is_told_with_its_key(text: str, said: str, tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as error:
        settings(file, each={"engine": {"threads": 2}})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"models": [{"path": "demo"}, {"path": "demo"}]}, "models: several are called demo"),
        ({"compare": ["demo", "none"]}, "compare: none: no such model; there are demo"),
        ({"keys": [KEY, KEY]}, "keys: several have the same name"),
        ({"host": "0.0.0.0"}, "host: 0.0.0.0 can be reached from elsewhere"),
        ({"host": "example.org", "require_key": False, "keys": [KEY]}, "require_key: false, and host is example.org"),
        ({"models": [{"path": "demo", "replicas": {"min": 3, "max": 2}}]}, "models.0.replicas.max: 2 is below min, 3"),
        ({"keys": [{"name": "ann", "sha256": "tsq-one"}]}, "keys.0.sha256: "),
        ({"models": [{"path": "demo", "name": "no spaces"}]}, "models.0.name: "),
    ],
)
def test_clashes_are_told(values: dict[str, Any], said: str):
    with pytest.raises(SettingsError) as error:
        check_serve_settings({"models": [{"path": "demo"}]} | values)
    assert said in str(error.value)


def test_another_address_is_allowed_with_a_key():
    assert check_serve_settings({"models": [{"path": "demo"}], "host": "0.0.0.0", "keys": [KEY]}).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("::", False), ("h", False)]
)
def test_loopback_is_this_machine_alone(host: str, own: bool):
    assert is_loopback(host) is own


def test_replicas_come_and_go_with_the_queue():
    found = check_serve_settings(
        {
            "models": [
                {
                    "path": "demo",
                    "engine": {"max_batch_size": 64},
                    "replicas": {"min": 0, "max": 4, "load": 0.75, "upscale_delay_seconds": 7, "downscale_delay_seconds": 90},
                }
            ],
            "drain_seconds": 33,
        }
    )
    options = engine_options("engine-demo", found.models[0], found)
    assert options["max_ongoing_requests"] == 80  # 64 places, and a quarter of them waiting
    assert options["autoscaling_config"] == {
        "min_replicas": 0,
        "initial_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 48,  # 0.75 × 64
        "upscale_delay_s": 7,
        "downscale_delay_s": 90,
    }
    assert options["graceful_shutdown_timeout_s"] == 33


def test_without_a_maximum_there_is_no_autoscaling():
    found = check_serve_settings({"models": [{"path": "demo", "replicas": {"min": 2}}]})
    scaling = engine_options("engine-demo", found.models[0], found)["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 2)


def test_no_two_models_share_a_deployment():
    names = ["a/b", "a-b", "a.b", "a:b", "A-b"]
    assert len({deployment_name(name) for name in names}) == len(names)
    assert all(name.replace("-", "").isalnum() for name in map(deployment_name, names))


def test_a_new_key_opens_the_server_whose_settings_hold_its_lines():
    printed = CliRunner().invoke(app, ["serve-key", 'ann "the" analyst'])
    key = printed.stderr.splitlines()[-1]
    assert key.startswith("tsq-") and key not in printed.stdout
    (held,) = tomllib.loads(printed.stdout)["keys"]
    assert held == {"name": 'ann "the" analyst', "sha256": key_digest(key)}
