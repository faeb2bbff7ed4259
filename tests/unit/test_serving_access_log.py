"""The access log: one line per request, no text unless asked for, and a full disk that costs only lines."""

import json
import stat
from pathlib import Path

import pytest

from tokensqueeze.errors import StorageError
from tokensqueeze.serving.access_log import AccessLog
from tokensqueeze.serving.request_record import RequestRecord


def a_record(**changes: object) -> RequestRecord:
    record = RequestRecord("req-1", "/v1/chat/completions", arrived_at=1_790_000_000.25)
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_asked_what_and_what_came_of_it(tmp_path: Path):
    log = AccessLog(tmp_path / "access.jsonl")
    log.write(
        a_record(
            key="ann",
            model="demo",
            status=200,
            stream=True,
            choices=2,
            prompt_tokens=12,
            reasoning_tokens=30,
            answer_tokens=8,
            finish_reasons=["stop", "length"],
            thinking_closed=1,
            resumed=1,
            first_token_seconds=0.0123456789,
            duration_seconds=1.5,
        )
    )
    log.close()
    assert lines(tmp_path / "access.jsonl") == [
        {
            "time": "2026-09-21T14:13:20.250+00:00",  # date -u -d @1790000000
            "request_id": "req-1",
            "key": "ann",
            "method": "POST",
            "route": "/v1/chat/completions",
            "model": "demo",
            "status": 200,
            "error": None,
            "stream": True,
            "choices": 2,
            "prompt_tokens": 12,
            "reasoning_tokens": 30,
            "answer_tokens": 8,
            "ttft_seconds": 0.012346,
            "duration_seconds": 1.5,
            "finish_reasons": ["stop", "length"],
            "thinking_closed": 1,
            "resumed": 1,
        }
    ]


def test_texts_are_written_only_where_they_were_kept_and_stay_on_one_line(tmp_path: Path):
    log = AccessLog(tmp_path / "access.jsonl")
    log.write(a_record())
    log.write(a_record(prompt='one\ntwo\u2028"three"', answer="\ud800 half a character"))
    log.close()
    first, second = lines(tmp_path / "access.jsonl")
    assert "prompt" not in first and "answer" not in first
    assert second["prompt"] == 'one\ntwo\u2028"three"'
    assert len((tmp_path / "access.jsonl").read_bytes().splitlines()) == 2


def test_lines_are_appended_to_a_file_that_only_its_owner_may_read(tmp_path: Path):
    path = tmp_path / "access.jsonl"
    for _ in range(2):
        log = AccessLog(path)
        log.write(a_record())
        log.close()
    assert len(lines(path)) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_file_lines_go_to_standard_error(capfd: pytest.CaptureFixture[str]):
    AccessLog().write(a_record(status=404))
    assert json.loads(capfd.readouterr().err)["status"] == 404


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match=r"access_log: .*nowhere"):
        AccessLog(tmp_path / "nowhere" / "access.jsonl")


def test_a_full_disk_costs_lines_and_is_said_once(capfd: pytest.CaptureFixture[str]):
    log = AccessLog(Path("/dev/full"))
    for _ in range(3):
        log.write(a_record())
    log.close()
    assert log.lost == 3
    said = capfd.readouterr().err
    assert said.count("can't be written (No space left on device)") == 1
