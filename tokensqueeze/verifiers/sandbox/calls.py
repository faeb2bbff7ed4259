"""Asserts in one process call what a program has defined in another: only arguments go there, only values come back.

So a program can neither read what is expected of it nor replace what compares. An object that is not plain stays where
it is; the asserts get a `Remote` for it.
"""

import builtins
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from tokensqueeze.verifiers.sandbox.channel import Channel, HungUp
from tokensqueeze.verifiers.sandbox.plain_values import decode, encode


class Calls:
    """The program's side."""

    def __init__(self, link: Channel) -> None:
        self._link = link
        self._objects: list[Any] = []

    def offer(self, namespace: Mapping[str, Any]) -> None:
        """Tell the asserts what there is: names with their values, and modules, which they import for themselves."""
        names, modules = dict[str, Any](), list[str]()
        for name, value in namespace.items():
            if isinstance(value, ModuleType):
                modules += [name] if name == value.__name__ else []
            elif not name.startswith("__"):
                names[name] = encode(value, self._refer)
        self._link.send({"names": names, "modules": modules})

    def serve(self) -> None:
        """Do what the asserts ask for until they hang up."""
        while True:
            try:
                request = self._link.receive()
            except HungUp:
                return
            try:
                reply = self._do(**request)
            except BaseException as error:  # it is the asserts' business: some expect an exception
                reply = {"raised": cause_of(error)}
            self._link.send(reply)

    def _do(self, what: str, on: int, arguments: list[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        subject = self._objects[on]
        values = [decode(argument, self._object) for argument in arguments]
        if what != "call":
            return {"value": encode(_OPERATIONS[what](subject, *values), self._refer)}
        result = subject(*values, **{name: decode(value, self._object) for name, value in named.items()})
        # Encoded first: what it refers to may change with the arguments.
        reply: dict[str, Any] = {"value": encode(result, self._refer)}
        after = {
            index: encode(value, self._refer)
            for index, value in enumerate(values)
            if isinstance(value, (list, dict, set, bytearray))
        }
        changed = {index: coded for index, coded in after.items() if coded != arguments[index]}
        return reply | ({"changed": changed} if changed else {})

    def _refer(self, value: Any) -> dict[str, int]:
        self._objects.append(value)
        return {"object": len(self._objects) - 1}

    def _object(self, coded: Any) -> Any:
        return self._objects[coded["object"]]


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "list": list,
    "bool": bool,
    "len": len,
    "item": lambda subject, key: subject[key],
    "str": str,
}


CAUSE = "remote_cause"
"""Name of the attribute by which an exception remembers that the program raised it, and what its verdict's cause is."""


class RemoteError(Exception):
    """What the program raised, of a kind that Python itself has not."""


class CantPass(TypeError):
    """The asserts give the program what can't go there, such as a function of their own: no fault of the program's."""


class Remote:
    """The asserts' side of an object of the program's. It is equal to itself alone."""

    def __init__(self, link: "Asking", number: int) -> None:
        self.__dict__.update(_link=link, _number=number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._link.ask("call", self._number, arguments, named)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("get", self._number, [name])

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self._number, [name, value])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._link.ask("list", self._number))

    def __bool__(self) -> bool:
        return bool(self._link.ask("bool", self._number))

    def __len__(self) -> int:
        return self._link.ask("len", self._number)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self._number, [key])

    def __str__(self) -> str:
        return str(self._link.ask("str", self._number))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


class Asking:
    """The asserts' end of the link."""

    def __init__(self, link: Channel) -> None:
        self._link = link
        self.calls = 0
        """Functions called so far."""
        self.died: str | None = None
        """Why the program ended before it could be asked."""

    def offered(self) -> dict[str, Any]:
        """Wait for the program; return the names that it has defined, or nothing if it failed."""
        offer = self._receive()
        if "died" in offer:
            self.died = str(offer["died"])
            return {}
        modules = {name: import_module(name) for name in offer["modules"] if name in sys.stdlib_module_names}
        return {name: decode(value, self._remote) for name, value in offer["names"].items()} | modules

    def ask(self, what: str, number: int, arguments: Iterable[Any] = (), named: Mapping[str, Any] | None = None) -> Any:
        self.calls += what == "call"
        given = list(arguments)
        coded = [encode(value, _number_of) for value in given]
        coded_named = {name: encode(value, _number_of) for name, value in (named or {}).items()}
        self._link.send({"what": what, "on": number, "arguments": coded, "named": coded_named})
        reply = self._receive()
        if "raised" in reply:
            raise _exception(str(reply["raised"]))
        for index, changed in reply.get("changed", {}).items():
            _overwrite(given[int(index)], decode(changed, self._remote))
        return decode(reply["value"], self._remote)

    def _receive(self) -> dict[str, Any]:
        try:
            return self._link.receive()
        except (ValueError, RecursionError, MemoryError) as error:
            raise RemoteError("output") from error

    def _remote(self, coded: Any) -> Remote:
        return Remote(self, int(coded["object"]))


def cause_of(error: BaseException) -> str:
    """Return the cause of a verdict that an exception of the program's is."""
    match error:
        case SystemExit():
            return "exit"
        case MemoryError():
            return "memory"
    return f"exception: {type(error).__name__}"


def _exception(cause: str) -> Exception:
    """Return an exception for the asserts to catch, by the name it had in the program, that remembers its cause."""
    kind = getattr(builtins, cause.removeprefix("exception: "), None)
    known = isinstance(kind, type) and issubclass(kind, Exception)
    error = kind.__new__(kind) if known else RemoteError(cause)  # type: ignore[union-attr]
    setattr(error, CAUSE, cause)
    return error


def _number_of(value: Any) -> dict[str, int]:
    if isinstance(value, Remote):
        return {"object": value.__dict__["_number"]}
    raise CantPass(f"a {type(value).__name__} can't be passed to the program")


def _overwrite(value: Any, changed: Any) -> None:
    """Give a mutable argument the contents that the program has left in its copy."""
    value.clear()
    value.extend(changed) if isinstance(value, (list, bytearray)) else value.update(changed)
