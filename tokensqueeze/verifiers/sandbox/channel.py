"""JSON messages, one a line, over a stream socket."""

import json
import socket
from typing import Any

MAX_MESSAGE_BYTES = 16 * 2**20


class HungUp(ConnectionError):
    """The other end is gone."""


class Channel:
    """Both directions, blocking. Raises `HungUp`, and `ValueError` for what is no message."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._reader = self._socket.makefile("rb")
        self.hung_up = False
        """Whether `HungUp` was raised, which code in between may have caught."""

    def send(self, message: Any) -> None:
        try:
            self._socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._gone() from error

    def receive(self, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
        try:
            line = self._reader.readline(max_bytes)
        except ConnectionResetError as error:
            raise self._gone() from error
        if not line:
            raise self._gone()
        if not line.endswith(b"\n"):
            raise ValueError(f"a message over {max_bytes} bytes, or cut off")
        return json.loads(line)

    def _gone(self) -> HungUp:
        self.hung_up = True
        return HungUp()
