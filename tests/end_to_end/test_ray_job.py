"""A run as a job on a cluster that is there already, as `ray start` makes it and `ray job submit` reaches it."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ray_jobs
import tokensqueeze
from tests.end_to_end.small_run import (
    SECONDS,
    SMALL,
    clean_environment,
    descendants,
    kill_with_descendants,
    still_alive,
    temporary_folder,
)
from tokensqueeze.demo import settings_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]

    def submit(self, working_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Submit `ray_jobs.run_pipeline`, wait for its end and return its log."""
        job = ["--", "python", "-m", "ray_jobs.run_pipeline", *arguments]
        return subprocess.run(
            [str(RAY), "job", "submit", "--address", self.address, "--working-dir", str(working_dir), *job],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray head of its own, on ports and with a token of its own; exactly its processes are ended."""
    with temporary_folder() as folder:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        bin_folder = str(RAY.parent)
        environment = clean_environment() | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "TMPDIR": str(folder),
            "HOME": str(folder),
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        }
        gcs, dashboard, client = _free_ports(3)
        options = {
            "port": gcs,
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "dashboard-host": "127.0.0.1",
            "node-ip-address": "127.0.0.1",
            "temp-dir": folder / "ray",
            "num-cpus": 2,
        }
        head = subprocess.Popen(
            [str(RAY), "start", "--head", "--block", *[f"--{name}={value}" for name, value in options.items()]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_until_it_answers(address, head)
            yield Cluster(address, environment)
        finally:
            family = descendants(head.pid)
            kill_with_descendants(head.pid)
            head.wait()
            assert still_alive(family, seconds=30) == []


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user submits: a checkout's code, and settings."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in (tokensqueeze, ray_jobs):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(settings_file(), folder / "small.toml")
    return folder


def test_a_job_makes_a_whole_run_and_leaves_it_outside_of_its_working_dir(cluster: Cluster, working_dir: Path) -> None:
    done = cluster.submit(working_dir, "small.toml", *[part for override in SMALL for part in ("--set", override)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[10/10] evaluation_squeezed: starting" in done.stdout
    output = Path(cluster.environment["HOME"]) / "tokensqueeze" / "runs" / "small"
    assert {path.name for path in output.iterdir()} >= {"report.html", "evaluation.json", "run.json", "model", "tables"}
    assert (output / "model" / "model.safetensors").stat().st_size > 10**6
    assert json.loads((output / "run.json").read_text())["settings"]["sampling"]["num_samples"] == 6


def test_a_job_with_a_mistake_fails_with_its_line_in_the_log(cluster: Cluster, working_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = cluster.submit(working_dir, "small.toml", "--output", str(output), "--set", "sampling.temprature=1")
    assert done.returncode != 0
    log = done.stdout + done.stderr
    assert "tokensqueeze: the settings have 1 mistake:\n" in log
    assert "sampling.temprature: unknown setting; did you mean temperature?" in log
    assert "Traceback" not in log
    assert not output.exists()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_it_answers(address: str, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # It is there, and wants the token.
        except OSError:
            assert head.poll() is None, f"ray start ended with {head.returncode}"
            assert time.monotonic() < deadline, f"no Ray dashboard at {address}"
            time.sleep(0.5)
