"""Hugging Face data sets: found in the local cache, fetched from a hub only where that is allowed.

The hub is a small server of the test's own that answers as the real one does; the real one is not asked.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from tokensqueeze.config import ProblemSource
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.benchmarks import read_benchmark
from tokensqueeze.problems.source import read_problems

KEY = "problems.train"
REVISION = 40 * "a"
CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: test
    path: [socratic/test-*]
---
# GSM8K
"""


@dataclass
class Hub:
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int = 200


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository, owner/name, on a port of this machine."""
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            served.asked.append(self.path)
            path = self.path.partition("?")[0]
            content, headers = b"{}", {}
            status = served.status
            resolved = path.removeprefix(f"/datasets/owner/name/resolve/{REVISION}/")
            if status != 200:
                headers = {"X-Error-Code": "GatedRepo" if status == 403 else "RepoNotFound"}
            elif path.startswith("/api/datasets/owner/name/revision/"):
                content = json.dumps({"id": "owner/name", "sha": REVISION, "siblings": []}).encode()
            elif path.startswith("/api/datasets/owner/name/tree/"):
                content = json.dumps(
                    [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in served.files.items()]
                ).encode()
            elif resolved in served.files:
                content = served.files[resolved]
                etag = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}
            else:
                status = 404
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def no_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nobody listens."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def put(cache: Path, repository: str, files: Mapping[str, bytes]) -> None:
    """Lay files into the cache as the hub's client does."""
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    for name, content in files.items():
        path = folder / "snapshots" / REVISION / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(REVISION)


def parquet(*answers: int) -> bytes:
    table = pa.Table.from_pylist([{"question": f"{answer}?", "answer": f"So #### {answer}"} for answer in answers])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def jsonl(*answers: int) -> bytes:
    return b"".join(json.dumps({"problem": "?", "answer": answer}).encode() + b"\n" for answer in answers)


GSM8K = {
    "README.md": CARD.encode(),
    "main/train-00000-of-00001.parquet": parquet(1, 2, 3),
    "main/test-00000-of-00002.parquet": parquet(4, 5),
    "main/test-00001-of-00002.parquet": parquet(6),
    "socratic/test-00000-of-00001.parquet": parquet(7),
}


def answers(path: str, **settings: object) -> list[str]:
    source = ProblemSource.model_validate({"path": path, **settings})
    return [problem.gold_answer for problem in read_problems(source, key=KEY)]


def message(path: str, **settings: object) -> str:
    with pytest.raises(ProblemsError) as caught:
        answers(path, **settings)
    start = f"{KEY}: {path}: "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(start)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name:main/test", ["4", "5", "6"]),
        ("owner/name:main", ["4", "5", "6"]),
        ("owner/name:main/train", ["1", "2", "3"]),
        ("owner/name:socratic", ["7"]),
        (f"owner/name@{REVISION}:socratic", ["7"]),
        ("owner/name@main:socratic/test", ["7"]),
    ],
)
def test_reads_a_cached_split_by_its_card(cache: Path, no_hub: None, name: str, expected: list[str]):
    put(cache, "owner/name", GSM8K)
    assert answers(f"hf:{name}") == expected


def test_ids_count_on_over_a_splits_files(cache: Path, no_hub: None):
    put(cache, "owner/name", GSM8K)
    problems = read_problems(ProblemSource(path="hf:owner/name:main/test"), key=KEY)
    assert [problem.problem_id for problem in problems] == [
        "name-main-test-00001",
        "name-main-test-00002",
        "name-main-test-00003",
    ]


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({"test.jsonl": jsonl(1), "train.jsonl": jsonl(2)}, "owner/name", ["1"]),
        ({"test.jsonl": jsonl(1), "test2.jsonl": jsonl(2), "contest.jsonl": jsonl(3)}, "owner/name/test", ["1", "2"]),
        ({"data/train-00000-of-00001.parquet": parquet(5)}, "owner/name/train", ["5"]),
        ({"hard/test.jsonl": jsonl(1), "easy/test.jsonl": jsonl(2)}, "owner/name:easy/test", ["2"]),
        ({"README.md": b"# No front matter", "test.jsonl": jsonl(1)}, "owner/name", ["1"]),
        ({"README.md": b"---\nconfigs: [\n---\n", "test.jsonl": jsonl(1)}, "owner/name", ["1"]),
        (
            {"README.md": b"---\nconfigs:\n- config_name: x\n  data_files: a.jsonl\n---\n", "a.jsonl": jsonl(4)},
            "owner/name",
            ["4"],
        ),
        (
            {
                "README.md": b"---\nconfigs:\n- config_name: x\n  data_files: a.jsonl\n"
                b"- config_name: y\n  default: true\n  data_files: [b.jsonl]\n---\n",
                "a.jsonl": jsonl(4),
                "b.jsonl": jsonl(5),
            },
            "owner/name:y/train",
            ["5"],
        ),
        (
            {
                "README.md": b"---\nconfigs:\n- config_name: x\n  data_files: a.jsonl\n"
                b"- config_name: y\n  default: true\n  data_files: b.jsonl\n---\n",
                "a.jsonl": jsonl(4),
                "b.jsonl": jsonl(5),
            },
            "owner/name",
            ["5"],
        ),
        ({"a.jsonl": jsonl(1), "b.jsonl": jsonl(2)}, "owner/name/train", ["1", "2"]),
    ],
)
def test_reads_a_cached_split_by_its_files_names(
    cache: Path, no_hub: None, files: dict[str, bytes], name: str, expected: list[str]
):
    put(cache, "owner/name", files)
    assert answers(f"hf:{name}") == expected


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, "owner/name"),
        ({name: data for name, data in GSM8K.items() if "00001-of-00002" not in name}, "owner/name:main/test"),
        ({"README.md": CARD.encode()}, "owner/name:main/test"),
        ({"train.jsonl": jsonl(1)}, "owner/name"),
        ({"train.jsonl": jsonl(1)}, "owner/name/test"),
        ({"test.jsonl": jsonl(1)}, "owner/name@v2"),
    ],
)
def test_what_is_not_wholly_in_the_cache_is_not_fetched_unasked(cache: Path, hub: Hub, files: dict[str, bytes], name: str):
    if files:
        put(cache, "owner/name", files)
    assert message(f"hf:{name}") == (
        "not in the local Hugging Face cache; allow its download (--allow-download, or allow_download = true beside the "
        "path), or name a file"
    )
    assert hub.asked == []


def test_fetches_the_split_alone_where_that_is_allowed_and_finds_it_offline_afterwards(
    cache: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    hub.files = dict(GSM8K)
    assert answers("hf:owner/name:main/test", allow_download=True) == ["4", "5", "6"]
    fetched = {path.name for path in (cache / "datasets--owner--name" / "snapshots" / REVISION).rglob("*") if path.is_file()}
    assert fetched == {"README.md", "test-00000-of-00002.parquet", "test-00001-of-00002.parquet"}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.asked.clear()
    assert answers("hf:owner/name:main/test") == ["4", "5", "6"]
    assert answers("hf:owner/name:main/test", allow_download=True) == ["4", "5", "6"]
    assert "not in the local Hugging Face cache" in message("hf:owner/name:main/train")
    assert hub.asked == []


def test_fetches_what_a_broken_off_download_left_out(cache: Path, hub: Hub):
    hub.files = dict(GSM8K)
    put(cache, "owner/name", {name: data for name, data in GSM8K.items() if "00001-of-00002" not in name})
    assert answers("hf:owner/name:main/test", allow_download=True) == ["4", "5", "6"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", "several configurations, main, socratic; name one with :CONFIG as in hf:OWNER/NAME[:CONFIG][/SPLIT]"),
        (
            "owner/name:other",
            "no configuration 'other'; there are main, socratic; name one with :CONFIG as in hf:OWNER/NAME[:CONFIG][/SPLIT]",
        ),
        (
            "owner/name:main/dev",
            "no split 'dev'; there are train, test; name one with /SPLIT as in hf:OWNER/NAME[:CONFIG][/SPLIT]",
        ),
    ],
)
def test_says_which_configurations_and_splits_there_are(cache: Path, hub: Hub, name: str, expected: str):
    hub.files = dict(GSM8K)
    assert message(f"hf:{name}", allow_download=True) == expected
    put(cache, "owner/name", GSM8K)
    assert message(f"hf:{name}") == expected


def test_says_that_a_repository_holds_no_table(hub: Hub):
    hub.files = {"name.py": b"", "README.md": b"# Hello"}
    assert message("hf:owner/name", allow_download=True) == (
        "no JSONL, Parquet, CSV or JSON file of that in it; it has README.md, name.py"
    )


def test_says_that_the_hub_is_out_of_reach(no_hub: None):
    assert message("hf:owner/name", allow_download=True).startswith("could not be fetched (")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, "the hub has no such data set or revision, or keeps it private; mend the name, or log in"),
        (
            403,
            "its owners ask for agreement; give it at https://huggingface.co/datasets/owner/name and log in with "
            "`hf auth login`",
        ),
    ],
)
def test_says_what_the_hub_says(hub: Hub, status: int, expected: str):
    hub.status = status
    assert message("hf:owner/name", allow_download=True) == expected


@pytest.mark.parametrize("name", ["name", "a/b/c/d", "owner/", "owner/na me", "owner/name:", "owner/name@"])
def test_says_how_a_data_set_is_named(name: str):
    assert message(f"hf:{name}") == "no data set's name; write it as hf:OWNER/NAME[@REVISION][:CONFIG][/SPLIT]"


@pytest.mark.parametrize("path", ["hf", "hf:openai/gsm8k", "hf:openai/gsm8k:main/test"])
def test_a_benchmarks_own_data_set_needs_no_split(cache: Path, no_hub: None, path: str):
    put(cache, "openai/gsm8k", GSM8K)
    problems = read_benchmark("gsm8k", path, key="--benchmark gsm8k")
    assert [(problem.problem_id, problem.gold_answer) for problem in problems] == [
        ("gsm8k-00001", "4"),
        ("gsm8k-00002", "5"),
        ("gsm8k-00003", "6"),
    ]
