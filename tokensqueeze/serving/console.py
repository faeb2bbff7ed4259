"""What `tokensqueeze serve` tells the person who started it: what takes long, then the URL, the key and a line to try."""

import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from tokensqueeze.serving.launch import Listening

_QUESTION = "Tom has 12 apples. Tom buys 7 apples. How many apples?"


class ServerConsole:
    def __init__(self, console: Console | None = None):
        # Whoever waits for the announcement in a pipe should have it when it is made.
        self.console = console or Console(highlight=False, soft_wrap=True, file=sys.stdout)

    def say(self, what: str) -> None:
        self._print(what)

    def announce(self, listening: "Listening", *, own_keys: bool) -> None:
        """Print how to use the server; `own_keys`: whether the settings name keys, of which only hashes are known here."""
        self._print(f"serving {', '.join(listening.models)} at {listening.url}/v1")
        if listening.key:
            self._print(f"key: {listening.key}  (made for this start; lasting ones: tokensqueeze serve-key NAME)")
            self._print(f"page: {listening.url}/#key={listening.key}")
        else:
            self._print(f"page: {listening.url}/")
        body = {"model": listening.models[-1], "messages": [{"role": "user", "content": _QUESTION}]}
        lines = [f"curl {listening.url}/v1/chat/completions"]
        if listening.key:
            lines.append(f"-H 'Authorization: Bearer {listening.key}'")
        elif own_keys:
            self._print("a key: one of those whose hashes the settings hold; put it in place of $YOUR_KEY")
            lines.append('-H "Authorization: Bearer $YOUR_KEY"')
        lines += ["-H 'Content-Type: application/json'", f"-d '{json.dumps(body)}'"]
        self._print(" ".join(lines))
        self._print("Ctrl-C stops it; requests under way are let end.")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()
