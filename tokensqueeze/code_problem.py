"""The tests of a programming problem, as its gold answer carries them: JSON of one `CodeTests`.

Three ways to test a program, as the benchmarks have them: asserts that run behind it (HumanEval, MBPP), what it prints
for an input (LiveCodeBench, Codeforces), what its function returns for arguments (LiveCodeBench's LeetCode problems).
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tokensqueeze.errors import ProblemsError

LEETCODE_PREFIX = """\
import bisect, collections, copy, datetime, functools, heapq, io, itertools
import json, math, operator, random, re, statistics, string, sys
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from typing import *
from builtins import *
import datetime, random, re, string, copy
sys.setrecursionlimit(50_000)
"""
"""What LeetCode has imported for a solution; LiveCodeBench puts it before every program, so it is the `prefix` there."""


class CodeTest(BaseModel):
    """One input and what must come of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str
    """The whole standard input; for a function its arguments, each in JSON on a line of its own."""
    output: str
    """The standard output; for a function what it returns, in JSON."""


class CodeTests(BaseModel):
    """All tests of one problem, of one of the three kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    asserts: str = ""
    """Python code that calls what the program defines and raises if it is wrong. It runs apart from the program, which never
    sees it, and passes plain values there (numbers, text, lists, tuples, sets, dicts) and objects that it got from there."""
    stdin: tuple[CodeTest, ...] = ()
    """Each runs the program anew."""
    functional: tuple[CodeTest, ...] = ()
    """Calls of `fn_name`, a method of the program's `class Solution` or, without one, a function of its own."""
    fn_name: str | None = None
    prefix: str = ""
    """Python code before the program: imports, or HumanEval's prompt, whose helper functions the asserts may call too."""
    entry_point: str | None = None
    """The function that is asked for. Where the prefix ends with its head, a program that doesn't define it is its body. Of
    the program's names it alone may be a builtin's or a module's for the asserts: MBPP asks for a function called `sum`."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [name for name in ("asserts", "stdin", "functional") if getattr(self, name)]
        if len(kinds) != 1:
            raise ValueError(f"the tests are of one kind, asserts, stdin or functional; here are {kinds or 'none'}")
        if bool(self.functional) != bool(self.fn_name):
            raise ValueError("functional tests, and no others, need fn_name, the function that they call")
        return self

    def to_json(self) -> str:
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises `ProblemsError` for what is no JSON of such tests."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the tests"
            raise ProblemsError(
                f"gold answer of a programming problem, {place}: {first['msg']}; it is JSON as CodeTests.to_json writes it"
            ) from None
