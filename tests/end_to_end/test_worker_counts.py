"""How many workers share the work must not show in the tables."""

from pathlib import Path

import pytest

from tests.end_to_end.small_run import SMALL, SmallRun, assert_same_tables, stages_to_scored_pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_four_workers_make_the_tables_that_one_makes(undisturbed: SmallRun, tmp_path: Path) -> None:
    four = SmallRun(tmp_path, (*SMALL, "resources.workers=4"), ("--until", "score"))
    four.succeed()
    stages, expected = stages_to_scored_pairs(four.plan), stages_to_scored_pairs(undisturbed.plan)
    assert [stage.output.manifest()["workers"] for stage in stages] == [4] * 7
    assert [stage.output.manifest()["workers"] for stage in expected] == [1] * 7
    assert_same_tables(stages, expected)
