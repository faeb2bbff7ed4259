"""One line of JSON per request: who asked which model, what came of it, how many tokens, how long. No text unless asked for."""

import contextlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokensqueeze.errors import StorageError
from tokensqueeze.serving.request_record import RequestRecord

_ONLY_THE_OWNER = 0o600
_STDERR = 2


class AccessLog:
    """Appends to a file, or to standard error. A disk that is full costs lines, not requests."""

    def __init__(self, path: Path | None = None):
        """Raises `StorageError` for a file that can't be written."""
        self._path = path
        self.lost = 0
        """Lines that could not be written."""
        self._broken_line = False
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = _STDERR if path is None else os.open(path, flags, _ONLY_THE_OWNER)
        except OSError as error:
            raise StorageError(f"access_log: {path}: {error.strerror}; name a file that can be written") from error

    def write(self, record: RequestRecord) -> None:
        line = json.dumps(_line(record), separators=(",", ":")).encode() + b"\n"
        # Half a line, where the disk was full in its middle, is ended before the next one.
        line = b"\n" + line if self._broken_line else line
        try:
            written = os.write(self._file, line)
        except OSError as error:
            self._lose(error.strerror or str(error))
        else:
            self._broken_line = written < len(line)
            if self._broken_line:
                self._lose("the disk is full")
            elif self.lost and self._path:
                _tell(f"access log {self._path}: written again; {self.lost} lines were lost")
                self.lost = 0

    def close(self) -> None:
        if self._path is not None:
            os.close(self._file)

    def _lose(self, why: str) -> None:
        self.lost += 1
        if self.lost == 1 and self._path:
            _tell(f"access log {self._path}: can't be written ({why}); requests are served without")


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def _line(record: RequestRecord) -> dict[str, Any]:
    line = {
        "time": datetime.fromtimestamp(record.arrived_at, UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "key": record.key,
        "method": record.method,
        "route": record.route,
        "model": record.model,
        "status": record.status,
        "error": record.error,
        "stream": record.stream,
        "choices": record.choices,
        "prompt_tokens": record.prompt_tokens,
        "reasoning_tokens": record.reasoning_tokens,
        "answer_tokens": record.answer_tokens,
        "ttft_seconds": _rounded(record.first_token_seconds),
        "duration_seconds": _rounded(record.duration_seconds),
        "finish_reasons": record.finish_reasons,
        "thinking_closed": record.thinking_closed,
        "resumed": record.resumed,
    }
    # They are set only where the settings say `log_prompts`.
    texts = {"prompt": record.prompt, "answer": record.answer}
    return line | {name: text for name, text in texts.items() if text is not None}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
