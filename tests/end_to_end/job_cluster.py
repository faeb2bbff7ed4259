"""A Ray cluster that is there already, as `ray start` makes it, and a checkout of which jobs are submitted to it."""

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray_jobs
import tokensqueeze
from tests.end_to_end.small_run import (
    SECONDS,
    clean_environment,
    descendants,
    kill_with_descendants,
    still_alive,
    temporary_folder,
)
from tokensqueeze.demo import settings_file

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


@contextmanager
def cluster(*, num_cpus: int) -> Iterator[Cluster]:
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
            "num-cpus": num_cpus,
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


def make_checkout(folder: Path) -> Path:
    """Make what a user submits: a checkout's code, and settings."""
    for package in (tokensqueeze, ray_jobs):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(settings_file(), folder / "small.toml")
    return folder


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
