"""One undisturbed run that several tests hold theirs against."""

import pytest

from tests.end_to_end.small_run import SmallRun


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A whole run on one worker. Tests read it and leave it as it is."""
    run = SmallRun(tmp_path_factory.mktemp("undisturbed") / "run")
    run.succeed()
    return run
