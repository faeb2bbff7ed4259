"""What a program is worth: where it is found, how the three kinds of tests come out, and that no trick passes them.

The HumanEval problems here are OpenAI's, MIT licence: https://github.com/openai/human-eval.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tokensqueeze.code_problem import LEETCODE_PREFIX, CodeTest, CodeTests
from tokensqueeze.config import CodeSettings
from tokensqueeze.schema import Verdict
from tokensqueeze.verifiers.code_tests import CodeVerifier
from tokensqueeze.verifiers.verdict import Answered, Judgement

ROOT = Path(__file__).parents[2]

# HumanEval/2, whole.
TRUNCATE_PROMPT = '''

def truncate_number(number: float) -> float:
    """ Given a positive floating point number, it can be decomposed into
    and integer part (largest integer smaller than given number) and decimals
    (leftover part always smaller than 1).

    Return the decimal part of the number.
    >>> truncate_number(3.5)
    0.5
    """
'''
TRUNCATE_TESTS = """

def check(candidate):
    assert candidate(3.5) == 0.5
    assert abs(candidate(1.33) - 0.33) < 1e-6
    assert abs(candidate(123.456) - 0.456) < 1e-6

check(truncate_number)
"""
# HumanEval/32, shortened: its asserts call a function of the prompt's own.
POLY_PROMPT = '''import math


def poly(xs: list, x: float):
    """
    Evaluates polynomial with coefficients xs at point x.
    """
    return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])


def find_zero(xs: list):
    """ xs are coefficients of a polynomial.
    find_zero find x such that poly(x) = 0.
    """
'''
POLY_TESTS = """
import copy

def check(candidate):
    for coeffs in ([1, 2], [-6, 11, -6, 1]):
        solution = candidate(copy.deepcopy(coeffs))
        assert math.isclose(poly(coeffs, solution), 0, abs_tol=1e-4)

check(find_zero)
"""
BISECT_BODY = """    begin, end = -1., 1.
    while poly(xs, begin) * poly(xs, end) > 0:
        begin *= 2.0
        end *= 2.0
    while end - begin > 1e-10:
        center = (begin + end) / 2.0
        if poly(xs, center) * poly(xs, begin) > 0:
            begin = center
        else:
            end = center
    return begin
"""

TRUNCATE = CodeTests(asserts=TRUNCATE_TESTS, prefix=TRUNCATE_PROMPT, entry_point="truncate_number")
POLY = CodeTests(asserts=POLY_TESTS, prefix=POLY_PROMPT, entry_point="find_zero")
ADD = CodeTests(asserts="assert add(1, 2) == 3\nassert add(20, 22) == 42\nassert add('a', 'b') == 'ab'", entry_point="add")
SECRET = CodeTests(
    asserts="def check(candidate):\n    assert candidate(7) == 'SECRET-31-OF-7'\n\ncheck(answer)", entry_point="answer"
)
ISCLOSE = CodeTests(asserts="assert abs(near(2) - 4) < 0.1\nassert math.isclose(near(3), 9)", entry_point="near")
SUM = CodeTests(asserts="assert sum(10, 15) == 6\nassert sum(100, 150) == 93", entry_point="sum")
PAIR = CodeTests(asserts="assert longest([Pair(5, 24), Pair(15, 25), Pair(27, 40)]) == 2\nassert Pair(1, 2).a == 1")
SORTS = CodeTests(asserts="xs = [3, 1, 2]\nsort(xs)\nassert xs == [1, 2, 3]", entry_point="sort")
RAISES = CodeTests(
    asserts="try:\n    root(-1)\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError\nassert root(4) == 2",
    entry_point="root",
)
KINDS = CodeTests(
    asserts="""
value = same({1: (2, [3]), 'a': {4}, None: b'x'})
assert value == {1: (2, [3]), 'a': {4}, None: b'x'} and type(value[1]) is tuple and type(value['a']) is set
assert same(10 ** 5000) == 10 ** 5000
assert same(float('inf')) == float('inf') and same(1 + 2j) == 1 + 2j and same(True) is True
assert same(range(3)) == range(3) and same(frozenset([1])) == frozenset([1]) and same('\\ud800') == '\\ud800'
""",
    entry_point="same",
)
DOUBLE = CodeTests(stdin=(CodeTest(input="21\n", output="42\n"), CodeTest(input="4\n", output="8")))
MERGE = CodeTests(
    functional=(
        CodeTest(input='[1, 3]\n[2]\n"up"', output="[1, 2, 3]"),
        CodeTest(input='[5]\n[]\n"down"', output="[5]"),
        CodeTest(input='[1]\n[2]\n"down"', output="[2, 1]"),
    ),
    fn_name="merge",
    prefix=LEETCODE_PREFIX,
)
GROUP = CodeTests(functional=(CodeTest(input='["a", "b", "aa"]', output='{"1": ["a", "b"], "2": ["aa"]}'),), fn_name="group")
GROUP_RIGHT = """def group(words):
    groups = {}
    for word in words:
        groups.setdefault(str(len(word)), []).append(word)
    return groups
"""
MERGE_RIGHT = """class Solution:
    def merge(self, a: List[int], b: List[int], order: str) -> List[int]:
        return sorted(a + b, reverse=order == "down")
"""

# What the program does, its tests, the program, what must come of it.
PROGRAMS: list[tuple[str, CodeTests, str, Verdict, str | None]] = [
    ("a right function", ADD, "def add(a, b):\n    return a + b", "correct", None),
    ("a wrong function", ADD, "def add(a, b):\n    return a + b if a != 20 else 41", "incorrect", "wrong_answer: test 2"),
    ("raises", ADD, "def add(a, b):\n    return 3 if a == 1 else a.nothing", "incorrect", "exception: AttributeError"),
    ("returns nothing where a number is compared", TRUNCATE, "def truncate_number(n):\n    if n < 3: return\n    return n % 1",
     "incorrect", "exception: TypeError"),
    ("does not define it", ADD, "def sub(a, b):\n    return a - b", "incorrect", "exception: NameError"),
    ("fails before it defines it", ADD, "1 / 0\ndef add(a, b):\n    return a + b", "incorrect", "exception: ZeroDivisionError"),
    ("does not parse", ADD, "def add(a, b)\n    return a + b", "incorrect", "exception: SyntaxError"),
    ("wants input", ADD, "def add(a, b):\n    return int(input())", "incorrect", "exception: EOFError"),
    ("wants input in a method", MERGE, "def merge(*_):\n    return input()", "incorrect", "exception: EOFError"),
    ("raises what its own connection would", ADD, "def add(a, b):\n    raise ConnectionError", "incorrect",
     "exception: ConnectionError"),
    ("recurses without end", ADD, "def add(a, b):\n    return add(a, b)", "incorrect", "exception: RecursionError"),
    ("a lambda", ADD, "add = lambda a, b: a + b", "correct", None),
    ("function behind a prompt", TRUNCATE, "def truncate_number(number):\n    return number % 1.0", "correct", None),
    ("whole prompt again", TRUNCATE, TRUNCATE_PROMPT + "    return number % 1.0", "correct", None),
    ("a body alone", TRUNCATE, "    return number % 1.0", "correct", None),
    ("a body without its indentation", TRUNCATE, "x = number\nreturn x % 1.0", "correct", None),
    ("a wrong body", TRUNCATE, "    return number", "incorrect", "wrong_answer: test 1"),
    ("future import behind a prompt", TRUNCATE,
     "from __future__ import annotations\ndef truncate_number(n: Any):\n    return n % 1", "correct", None),
    ("a body that calls the prompt's function", POLY, BISECT_BODY, "correct", None),
    ("a function that calls the prompt's function", POLY, "def find_zero(xs: list):\n" + BISECT_BODY, "correct", None),
    ("has a script's end", ADD, "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    input()", "correct", None),
    ("a name that is a builtin's", SUM, "import builtins\ndef sum(a, b):\n"
     "    return builtins.sum(i for i in range(1, min(a, b) + 1) if a % i == b % i == 0)", "correct", None),
    ("objects of its own class", PAIR,
     "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
     "def longest(pairs):\n    end, count = 0, 0\n    for p in sorted(pairs, key=lambda p: p.b):\n"
     "        if p.a > end:\n            end, count = p.b, count + 1\n    return count", "correct", None),
    ("changes its argument", SORTS, "def sort(xs):\n    xs.sort()", "correct", None),
    ("changes a copy", SORTS, "def sort(xs):\n    return sorted(xs)", "incorrect", "wrong_answer: test 1"),
    ("raises what is expected", RAISES, "import math\ndef root(x):\n    return math.sqrt(x)", "correct", None),
    ("raises something else", RAISES, "def root(x):\n    raise KeyError", "incorrect", "exception: KeyError"),
    ("plain values of every kind", KINDS, "def same(x):\n    return x", "correct", None),
    ("dict of a subclass", CodeTests(asserts="assert count('aab') == {'a': 2, 'b': 1}"),
     "from collections import Counter\ndef count(s):\n    return Counter(s)", "correct", None),
    ("a module it has imported", CodeTests(asserts="assert math.isclose(third(), 1 / 3)"),
     "import math\ndef third():\n    return 1 / 3", "correct", None),
    ("prints what it should", DOUBLE, "print(2 * int(input()))", "correct", None),
    ("reads all of its input", DOUBLE, "import sys\nprint(2 * int(sys.stdin.read()), end='  ')", "correct", None),
    ("as a script", DOUBLE, "def main():\n    print(2 * int(input()))\nif __name__ == '__main__': main()", "correct", None),
    ("works in a thread", DOUBLE, "import threading\nthreading.stack_size(2 ** 26)\n"
     "threading.Thread(target=lambda: print(2 * int(input()))).start()", "correct", None),
    ("prints at its end", DOUBLE, "import atexit\natexit.register(lambda: print(2 * int(input())))", "correct", None),
    ("leaves by exit", DOUBLE, "print(2 * int(input()))\nexit()", "correct", None),
    ("wrong for the second input", DOUBLE, "print(42)\ninput()", "incorrect", "wrong_answer: test 2"),
    ("prints nothing", DOUBLE, "pass", "incorrect", "wrong_answer: test 1"),
    ("wants more input", DOUBLE, "print(int(input()) + int(input()))", "incorrect", "exception: EOFError"),
    ("right, then fails", DOUBLE, "print(2 * int(input()))\nraise ValueError", "incorrect", "exception: ValueError"),
    ("a method of Solution", MERGE, MERGE_RIGHT, "correct", None),
    ("a function instead", MERGE, "def merge(a, b, order):\n    return tuple(sorted(a + b)[:: -1 if order == 'down' else 1])",
     "correct", None),
    ("forgets the second list", MERGE, MERGE_RIGHT.replace("a + b", "a"), "incorrect", "wrong_answer: test 1"),
    ("wrong for the third", MERGE, MERGE_RIGHT.replace('order == "down"', "False"), "incorrect", "wrong_answer: test 3"),
    ("returns what is no data", MERGE, "def merge(a, b, order):\n    yield from a + b", "incorrect", "exception: TypeError"),
    ("returns a dict", GROUP, GROUP_RIGHT, "correct", None),
    ("returns a dict of a subclass", GROUP, GROUP_RIGHT.replace("= {}", "= __import__('collections').Counter()"),
     "correct", None),
    ("returns a dict with numbers for names", GROUP, GROUP_RIGHT.replace("str(len(word))", "len(word)"),
     "incorrect", "wrong_answer: test 1"),
    ("returns tuples inside", GROUP, GROUP_RIGHT + "inner = group\ndef group(words):\n"
     "    return {key: tuple(found) for key, found in inner(words).items()}", "incorrect", "wrong_answer: test 1"),
    ("no such method", MERGE, "class Solution:\n    def other(self):\n        pass", "incorrect", "exception: AttributeError"),
]  # fmt: skip

_EQUAL = "class Yes:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
_SEARCH = """
import gc, os, sys
def answer(x):
    found = []
    def look(text):
        start = str(text).find('SECRET-')
        if start >= 0 and 'OF-7' in str(text)[start : start + 20]:
            found.append(str(text)[start : start + 14])
    for thing in gc.get_objects():
        try: look(thing)
        except Exception: pass
    frame = sys._getframe()
    while frame:
        look(frame.f_locals); look(frame.f_globals); look(frame.f_code.co_consts)
        frame = frame.f_back
    for top in ('/tmp', '/proc', '/dev'):
        for folder, _, files in os.walk(top):
            for file in files:
                try: look(open(os.path.join(folder, file)).read(10000)) if top == '/tmp' else None
                except Exception: pass
    for descriptor in (0, 3, 5, 6, 7, 8, 9, 10):
        try:
            os.set_blocking(descriptor, False)
            look(os.read(descriptor, 10 ** 6))
        except OSError: pass
    return found[0] if found else None
"""
_FORGE = "import os\nfor descriptor in (1, 2, 3, 4):\n    try: os.write(descriptor, b'%s\\n')\n    except OSError: pass\n"

CAUGHT = CodeTests(
    asserts="try:\n    add(1, 2)\n    done = False\nexcept Exception:\n    done = True\nassert done", entry_point="add"
)

TRICKS: list[tuple[str, CodeTests, str]] = [
    ("ends where the asserts expect an exception", CAUGHT, "import os\ndef add(a, b):\n    os._exit(0)"),
    ("exits with status 0", ADD, "exit(0)"),
    ("exits at once with status 0", ADD, "import os\nos._exit(0)"),
    ("exits when it is called", ADD, "def add(a, b):\n    raise SystemExit(0)"),
    ("ends at once when it is called", ADD, "import os\ndef add(a, b):\n    os._exit(0)"),
    ("exits in the input's run", DOUBLE, "exit(0)"),
    ("exits before the method is called", MERGE, "exit(0)"),
    ("is equal to everything", ADD, _EQUAL + "def add(a, b):\n    return Yes()"),
    ("returns what is equal to everything", MERGE, _EQUAL + "def merge(*_):\n    return Yes()"),
    ("returns a list that is equal to everything", ADD,
     "class Yes(list):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes()"),
    ("is close to everything", ISCLOSE, "class Yes:\n    def __sub__(s, o): return 0\n    def __abs__(s): return 0\n"
     "    def __lt__(s, o): return True\n    def __float__(s): return 9.0\ndef near(x):\n    return Yes()"),
    ("defines abs", ISCLOSE, "import math\ndef abs(x):\n    return 0\ndef near(x):\n    return 9"),
    ("defines math", ISCLOSE, "class math:\n    def isclose(a, b):\n        return True\ndef near(x):\n    return 4.0"),
    ("patches abs", ISCLOSE, "import builtins, math\nbuiltins.abs = lambda x: 0\nmath.isclose = lambda a, b: True\n"
     "def near(x):\n    return 4"),
    ("defines check", TRUNCATE, "def check(candidate):\n    pass\ndef truncate_number(number):\n    return 0"),
    ("defines the prompt's function anew", POLY, "def poly(xs, x):\n    return 0\ndef find_zero(xs):\n    return 0"),
    ("makes AssertionError catch nothing", ADD, "import builtins\nclass AssertionError(Exception):\n    pass\n"
     "builtins.AssertionError = AssertionError\ndef add(a, b):\n    return 0"),
    ("traces every line", ADD, "import sys, os\ndef trace(frame, event, argument):\n    if event == 'exception':\n"
     "        os._exit(0)\n    return trace\nsys.settrace(trace)\ndef add(a, b):\n    return 0"),
    ("patches what compares and sends", ADD, "import builtins, json\nbuiltins.isinstance = lambda *a: True\n"
     "json.dumps = lambda *a, **k: '{\"value\": true}'\ndef add(a, b):\n    return 0"),
    ("prints that it has passed", ADD, "print('{\"failed\": null, \"calls\": 3}')\ndef add(a, b):\n    return 0"),
    ("writes that it has passed wherever it can", ADD,
     _FORGE % '{"failed": null, "calls": 3}' + "def add(a, b):\n    return 0"),
    ("offers names without a cause of death", ADD, _FORGE % '{"died": null}' + "os._exit(0)"),
    ("answers for the next call too", ADD, "def add(a, b):\n    " + (_FORGE % '{"value": 3}').replace("\n", "\n    ")
     + "\n    return 3"),
    ("reads the tests from memory and files", SECRET, _SEARCH),
    ("returns from the method before it is called", MERGE, _FORGE % '{"value": [1, 2, 3]}' + "class Solution: pass"),
]  # fmt: skip


def completion(program: str, tests: CodeTests) -> Answered:
    return Answered(f"<think>So.</think>\nHere it is:\n```python\n{program}\n```\nDone.", tests.to_json(), "stop", "code")


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    with CodeVerifier(CodeSettings(wall_seconds=30, min_isolation="rlimits"), think_end="</think>", processes=4) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def judgements(verifier: CodeVerifier) -> dict[str, Judgement]:
    items = {what: completion(program, tests) for what, tests, program, *_ in (*PROGRAMS, *TRICKS)}
    return dict(zip(items, verifier.judge(list(items.values())), strict=True))


@pytest.mark.parametrize(("what", "verdict", "cause"), [(p[0], p[3], p[4]) for p in PROGRAMS], ids=[p[0] for p in PROGRAMS])
def test_a_program_gets_the_verdict_that_its_tests_give(
    judgements: dict[str, Judgement], what: str, verdict: Verdict, cause: str | None
):
    assert (judgements[what].verdict, judgements[what].cause) == (verdict, cause)


@pytest.mark.parametrize("what", [trick[0] for trick in TRICKS])
def test_a_program_without_the_right_values_is_incorrect_whatever_it_tries(judgements: dict[str, Judgement], what: str):
    assert judgements[what].verdict == "incorrect"


def test_the_secret_of_the_tests_would_have_passed(verifier: CodeVerifier):
    program = "def answer(x):\n    return 'SECRET-31-OF-7'"
    assert verifier.judge([completion(program, SECRET)])[0].verdict == "correct"


def test_each_judgement_has_the_program_and_its_isolation(verifier: CodeVerifier, judgements: dict[str, Judgement]):
    judgement = judgements["a right function"]
    assert judgement.extracted_answer == "def add(a, b):\n    return a + b\n"
    assert judgement.isolation == verifier.isolation


def test_text_that_is_no_program_gives_no_answer(verifier: CodeVerifier):
    prose = Answered("<think>x</think>I can't say: it is too hard.", TRUNCATE.to_json(), "stop", "code")
    nothing = replace(prose, text="<think>x</think>")
    unasked = Answered("</think>def add(a, b):\n    return a + b", ADD.to_json(), "stop", "code")
    judged = verifier.judge([prose, nothing, unasked])
    assert [(j.verdict, j.cause, j.extracted_answer) for j in judged] == [("no_answer", "no_program", None)] * 3


def test_a_body_without_a_fence_is_a_program_where_a_prompt_waits_for_one(verifier: CodeVerifier):
    items = [Answered(f"</think>{text}", TRUNCATE.to_json(), "stop", "code")
             for text in ("    return number % 1.0\n", "    return number\n")]  # fmt: skip
    assert [judgement.verdict for judgement in verifier.judge(items)] == ["correct", "incorrect"]


def test_a_truncated_completion_is_incorrect_whatever_it_contains(verifier: CodeVerifier):
    judgement = verifier.judge([replace(completion("def add(a, b):\n    return a + b", ADD), finish_reason="length")])[0]
    assert (judgement.verdict, judgement.cause, judgement.isolation) == ("incorrect", "truncated", None)


def test_tests_that_can_not_be_read_are_nobodys_fault(verifier: CodeVerifier):
    item = completion("def add(a, b):\n    return a + b", ADD)
    broken = CodeTests(asserts="assert add(1, 2 == 3").to_json()
    no_json = CodeTests(functional=(CodeTest(input="1\n2", output="three"),), fn_name="add").to_json()
    passes_a_function = CodeTests(asserts="assert add(len, 2) == 3").to_json()
    judged = verifier.judge([replace(item, gold_answer=gold) for gold in ("3", broken, no_json, passes_a_function)])
    assert [(j.verdict, j.cause) for j in judged] == [
        ("unverifiable", "unreadable_tests"),
        ("unverifiable", "bad_tests: SyntaxError"),
        ("unverifiable", "bad_tests: JSONDecodeError"),
        ("unverifiable", "bad_tests: CantPass"),
    ]


def test_many_programs_leave_no_open_file_and_no_process_behind(verifier: CodeVerifier):
    items = [completion(f"def add(a, b):\n    return a + b if {wrong} == 0 else {wrong}", ADD) for wrong in range(30)]
    verifier.judge(items[:5])
    open_files = set(os.listdir("/proc/self/fd"))
    assert [judgement.verdict for judgement in verifier.judge(items)] == ["correct"] + ["incorrect"] * 29
    assert len(os.listdir("/proc/self/fd")) == len(open_files)
    keepers = Path(f"/proc/{verifier._sandbox._process.pid}/task/{verifier._sandbox._process.pid}/children")
    deadline = time.monotonic() + 60
    while keepers.read_text().split():  # The last ones may be on their way out.
        assert time.monotonic() < deadline


def test_a_sandbox_that_is_killed_is_started_anew(verifier: CodeVerifier):
    verifier._sandbox._process.kill()
    verifier._sandbox._process.wait()
    assert verifier.judge([completion("def add(a, b):\n    return a + b", ADD)])[0].verdict == "correct"


def test_where_namespaces_are_forbidden_nothing_runs_but_by_leave():
    """As in a container without privileges: the process first takes the right to make namespaces from itself."""
    item = completion("import xml.dom\ndef add(a, b):\n    return a + b", ADD)
    code = f"""
from tokensqueeze.code_problem import CodeTests
from tokensqueeze.config import CodeSettings
from tokensqueeze.errors import SettingsError
from tokensqueeze.verifiers.code_tests import CodeVerifier
from tokensqueeze.verifiers.sandbox.seccomp import deny_calls
from tokensqueeze.verifiers.verdict import Answered
deny_calls()
try:
    CodeVerifier(CodeSettings(), think_end="</think>")
except SettingsError as error:
    print(error)
with CodeVerifier(CodeSettings(min_isolation="rlimits"), think_end="</think>") as verifier:
    print(verifier.judge([{item!r}])[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    refusal, judgement = done.stdout.splitlines()
    assert refusal.startswith("verifier.code.min_isolation: 'namespaces' can't be had here (namespaces: ")
    assert "Operation not permitted" in refusal and "; bubblewrap: " in refusal and "user.max_user_namespaces" in refusal
    assert "verdict='correct'" in judgement and "isolation='rlimits'" in judgement
