"""Verdicts, and what a hanging, crashing or raising comparison costs: its own item and no other.

Where children are to misbehave they use this module's `equivalent` and `warm_up` in place of Math-Verify's.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tokensqueeze.errors import MissingPackageError, StageError
from tokensqueeze.schema import FinishReason, Verdict
from tokensqueeze.verifiers import judge_process
from tokensqueeze.verifiers.math_answer import MathVerifier
from tokensqueeze.verifiers.verdict import Answered, Judgement

ROOT = Path(__file__).parents[2]


def warm_up() -> None:
    """Nothing to load."""


def equivalent(gold_answer: str, answer: str) -> bool:
    """Do in the child what the answer says."""
    match answer:
        case "exit":
            os._exit(3)
        case "exit once":
            if not (marker := Path(gold_answer)).exists():
                marker.touch()
                os._exit(3)
        case "sleep":
            time.sleep(600)
        case "nap":
            time.sleep(0.5)
        case "raise":
            raise ZeroDivisionError(gold_answer)
        case "print":
            print("on the child's stdout")
        case "cpu limit":
            return resource.getrlimit(resource.RLIMIT_CPU)[0] - time.process_time() <= float(gold_answer)
        case "pid":
            return str(os.getpid()) == gold_answer
    return True


def completion(answer: str, gold: str, finish_reason: FinishReason = "stop") -> Answered:
    return Answered(f"<think>Let me see.</think>\n\nThe answer is \\boxed{{{answer}}}.", gold, finish_reason)


def misbehaving(timeout_seconds: float = 30, processes: int = 1, equivalence: str = __name__) -> MathVerifier:
    return MathVerifier(timeout_seconds=timeout_seconds, think_end="</think>", processes=processes, equivalence=equivalence)


def outcomes(judgements: Iterable[Judgement]) -> list[tuple[Verdict, str | None]]:
    return [(judgement.verdict, judgement.cause) for judgement in judgements]


def child_pids() -> set[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def read_truth() -> list[tuple[str, str, str]]:
    with (ROOT / "tests/fixtures/math_truth.tsv").open(encoding="utf-8", newline="") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    return [(gold, answer, verdict) for gold, answer, verdict in rows[1:]]


TRUTH = read_truth()
"""Gold answer, boxed answer, what a mathematician says."""


@pytest.fixture(scope="module")
def truth_judgements() -> list[Judgement]:
    items = [completion(answer, gold) for gold, answer, _ in TRUTH]
    with MathVerifier(timeout_seconds=30, think_end="</think>", processes=2) as verifier:
        return verifier.judge(items)


@pytest.mark.parametrize("index", range(len(TRUTH)), ids=[f"{gold} | {answer}" for gold, answer, _ in TRUTH])
def test_judges_as_a_mathematician_does(truth_judgements: list[Judgement], index: int):
    assert truth_judgements[index].verdict == TRUTH[index][2]


def test_every_gold_answer_of_the_table_is_itself(truth_judgements: list[Judgement]):
    with MathVerifier(timeout_seconds=30, think_end="</think>", processes=2) as verifier:
        assert {judgement.verdict for judgement in verifier.judge([completion(gold, gold) for gold, _, _ in TRUTH])} == {
            "correct"
        }


def test_a_truncated_completion_is_incorrect_whatever_it_contains():
    with misbehaving() as verifier:
        assert verifier.judge([completion("72", "72", "length")]) == [Judgement("incorrect", None, "truncated")]


def test_a_completion_without_a_box_is_no_answer():
    with misbehaving() as verifier:
        assert verifier.judge([Answered("It is 72.", "72", "stop")]) == [Judgement("no_answer", None, "no_boxed")]


def test_plain_answers_start_no_process():
    before = child_pids()
    with misbehaving() as verifier:
        judgements = verifier.judge([completion("72", "72"), completion("7", "72"), Answered("none", "72", "stop")])
        assert child_pids() == before
    assert [judgement.verdict for judgement in judgements] == ["correct", "incorrect", "no_answer"]


def test_a_monstrous_power_times_out_and_costs_its_own_item():
    items = [completion("14/3", "\\frac{14}{3}"), completion("9^{9^{9^9}}", "\\frac{1}{2}"), completion("0.5", "1/2")]
    with MathVerifier(timeout_seconds=2, think_end="</think>") as verifier:
        start = time.perf_counter()
        judgements = verifier.judge(items)
    assert outcomes(judgements) == [("correct", None), ("unverifiable", "timeout"), ("correct", None)]
    assert judgements[1].extracted_answer == "9^{9^{9^9}}"
    assert time.perf_counter() - start < 60


def test_a_crash_costs_its_own_item_and_the_next_child_goes_on():
    items = [completion(answer, "gold") for answer in ("a", "exit", "b", "raise", "print", "c")]
    for processes in (1, 3):
        with misbehaving(processes=processes) as verifier:
            assert outcomes(verifier.judge(items)) == [
                ("correct", None),
                ("unverifiable", "crash"),
                ("correct", None),
                ("unverifiable", "error: ZeroDivisionError"),
                ("correct", None),
                ("correct", None),
            ]


def test_every_item_may_be_a_bad_one():
    items = [completion("exit", f"gold {i}") for i in range(3)] + [completion("sleep", f"gold {i}") for i in range(2)]
    with misbehaving(timeout_seconds=0.3, processes=2) as verifier:
        assert outcomes(verifier.judge(items)) == 3 * [("unverifiable", "crash")] + 2 * [("unverifiable", "timeout")]


def test_equal_answers_to_equal_gold_answers_are_compared_once():
    items = [completion("sleep", "gold")] * 50
    with misbehaving(timeout_seconds=0.5) as verifier:
        start = time.perf_counter()
        assert outcomes(verifier.judge(items)) == 50 * [("unverifiable", "timeout")]
    assert time.perf_counter() - start < 15


def test_the_clock_starts_with_the_work_and_not_with_the_childs_start():
    # A child takes far longer than this to start.
    with MathVerifier(timeout_seconds=0.05, think_end="</think>", equivalence=__name__) as verifier:
        assert outcomes(verifier.judge([completion("a", "gold")])) == [("correct", None)]


def test_every_answer_of_a_batch_has_the_whole_time():
    items = [completion("nap", f"gold {i}") for i in range(6)]
    with misbehaving(timeout_seconds=2) as verifier:
        assert outcomes(verifier.judge(items)) == 6 * [("correct", None)]


def test_a_hanging_answer_costs_the_rest_of_its_batch_nothing():
    items = [completion(answer, "gold") for answer in ("a", "sleep", *"bcdefg")]
    with misbehaving(timeout_seconds=0.5) as verifier:
        assert outcomes(verifier.judge(items)) == [("correct", None), ("unverifiable", "timeout"), *6 * [("correct", None)]]


def test_a_child_is_replaced_when_it_is_worn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge_process, "WORN_AFTER_ANSWERS", 10)
    before = child_pids()
    with misbehaving() as verifier:
        verifier.judge([completion(f"answer {i}", "gold") for i in range(9)])
        (child,) = child_pids() - before
        judgements = verifier.judge([completion("pid", str(child))] + [completion(f"more {i}", "gold") for i in range(20)])
        assert child not in child_pids()
        assert len(child_pids() - before) == 1
    assert [judgement.verdict for judgement in judgements] == ["incorrect"] + 20 * ["correct"]


def test_a_child_is_replaced_when_it_is_too_big(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge_process, "WORN_AT_BYTES", 2**20)  # an interpreter has more than that
    before = child_pids()
    with misbehaving() as verifier:
        verifier.judge([completion("a", "gold")])
        (child,) = child_pids() - before
        assert outcomes(verifier.judge([completion("pid", str(child))])) == [("incorrect", None)]


def test_a_child_that_died_while_idle_costs_nothing():
    before = child_pids()
    with misbehaving() as verifier:
        verifier.judge([completion("a", "gold")])
        (child,) = child_pids() - before
        os.kill(child, signal.SIGKILL)
        while Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        assert outcomes(verifier.judge([completion("b", "gold")])) == [("correct", None)]


def test_a_child_killed_at_work_from_outside_costs_no_item(tmp_path: Path):
    items = [completion(answer, str(tmp_path / "marker")) for answer in ("a", "exit once", "b")]
    with misbehaving() as verifier:
        assert outcomes(verifier.judge(items)) == 3 * [("correct", None)]
    assert (tmp_path / "marker").exists()


def test_children_are_kept_between_calls_and_gone_at_the_end():
    before = child_pids()
    with misbehaving() as verifier:
        verifier.judge([completion("a", "gold")])
        (child,) = child_pids() - before
        # The child itself says whether it is the same one.
        assert outcomes(verifier.judge([completion("pid", str(child))])) == [("correct", None)]
    assert child_pids() == before


def test_works_off_the_main_thread():
    judgements: list[Judgement] = []

    def work() -> None:
        with MathVerifier(timeout_seconds=30, think_end="</think>") as verifier:
            judgements.extend(verifier.judge([completion("0.5", "1/2"), completion("0.6", "1/2")]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [judgement.verdict for judgement in judgements] == ["correct", "incorrect"]


def test_a_child_ends_when_its_parent_is_killed():
    code = (
        "import sys; sys.path[:] = " + json.dumps(sys.path) + "\n"
        f"from {__name__} import *\n"
        "verifier = misbehaving()\n"
        "verifier.judge([completion('a', 'gold')])\n"
        "print(*child_pids(), flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_a_busy_child_whose_parent_was_killed_may_use_ten_seconds_of_cpu_more_than_its_time():
    with misbehaving(timeout_seconds=30) as verifier:
        judgements = verifier.judge([completion("cpu limit", "40"), completion("cpu limit", "38")])
    assert [judgement.verdict for judgement in judgements] == ["correct", "incorrect"]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_says_what_to_install_when_math_verify_is_missing():
    with (
        misbehaving(equivalence="no_such_module") as verifier,
        pytest.raises(MissingPackageError, match=r"No module named 'no_such_module'; pip install 'tokensqueeze\[run"),
    ):
        verifier.judge([completion("a", "gold")])


def test_gives_up_on_a_child_that_dies_while_it_starts():
    # A module without `warm_up` ends the child with an exception before it is ready.
    before = child_pids()
    with misbehaving(equivalence="colorsys") as verifier:
        with pytest.raises(StageError, match="died or hung 3 times while starting, at last with exit status 1"):
            verifier.judge([completion("a", "gold")])
        assert child_pids() == before


def test_an_interrupted_call_leaves_no_answer_for_the_next_one():
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = child_pids()
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with misbehaving() as verifier:
            verifier.judge([completion("a", "gold")])
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                verifier.judge([completion("sleep", "gold")])
            assert child_pids() == before
            assert outcomes(verifier.judge([completion("raise", "gold")])) == [("unverifiable", "error: ZeroDivisionError")]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
