"""The files for `serve deploy`: what Ray Serve takes, settings that hold, and no key that anybody knows."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from ray_jobs.serve_model import build_app, settings_of
from tokensqueeze.errors import SettingsError
from tokensqueeze.serving.settings import is_loopback

CONFIGS = sorted((Path(__file__).parents[2] / "ray_jobs" / "configs").glob("serve_*.yaml"))
KEY = {"name": "me", "sha256": "5e" * 32}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_serve_takes_the_file_and_listens_to_this_machine_alone(path: Path):
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert is_loopback(config.http_options.host)
    assert [application.import_path for application in config.applications] == ["ray_jobs.serve_model:build_app"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_settings_lack_nothing_but_a_key(path: Path):
    args = arguments(path)
    with pytest.raises(SettingsError, match=r"1 mistake:\n  keys\.0\.sha256: .*serve-key"):
        settings_of(args)
    settings = settings_of(args | {"keys": [KEY]})
    assert settings.require_key and [key.name for key in settings.keys] == ["me"]


def test_settings_from_a_file_are_those_in_the_config(tmp_path: Path):
    path = tmp_path / "server.toml"
    path.write_text(f'[[models]]\npath = "demo"\n\n[[keys]]\nname = "me"\nsha256 = "{KEY["sha256"]}"\n')
    assert settings_of({"settings": str(path)}) == settings_of({"models": [{"path": "demo"}], "keys": [KEY]})


def test_a_server_on_a_cluster_that_wants_no_key_is_refused():
    for args in ({}, {"require_key": False}, {"require_key": False, "keys": [KEY]}):
        with pytest.raises(SettingsError, match="on a cluster needs"):
            build_app({"models": [{"path": "demo"}], **args})


def arguments(path: Path) -> dict[str, Any]:
    (application,) = yaml.safe_load(path.read_text())["applications"]
    return application["args"]
