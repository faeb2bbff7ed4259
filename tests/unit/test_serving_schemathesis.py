"""Schemathesis reads the app's own description and tries what fits it and what doesn't: nothing may end in a 5xx.

    SCHEMATHESIS_EXAMPLES=2000 pytest tests/unit/test_serving_schemathesis.py

tries more than the few that every run has time for.
"""

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from tests.unit.scripted_source import says
from tests.unit.served_app import AUTH, Built, built
from tokensqueeze.serving.api_description import describe

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "12"))


@cache
def made() -> Built:
    return built({"demo": [says()]}, Path(tempfile.mkdtemp()) / "access.jsonl")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await made().app(scope, receive, send)


# The description is read when tests are collected; the app is made when the first of these tests runs.
schema = schemathesis.openapi.from_dict(describe())
schema.app = app


@pytest.fixture(autouse=True)
def _nothing_stays_behind() -> Iterator[None]:
    yield
    assert made().app.state.in_flight() == 0
    assert not made().sources["demo"].open


@schema.parametrize()
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=[*HealthCheck])  # type: ignore[arg-type]
def test_every_route_answers_what_its_description_says_whatever_it_is_sent(case: schemathesis.Case):
    if case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
        # A name made up is answered 404 before anything else is looked at.
        case.body["model"] = "demo"
    # What fits the description may still ask for more than a model or the limits have room for. Whether a key is wanted
    # does not depend on the body, of which there are hundreds.
    left_out = [positive_data_acceptance, *([ignored_auth] if case.body else [])]
    case.call_and_validate(headers=AUTH, excluded_checks=left_out)


def test_what_the_tests_above_read_is_what_the_app_says_of_itself():
    assert TestClient(made().app).get("/openapi.json").json() == describe()


def test_requests_that_fit_have_reached_the_engine():
    if not made().log():
        pytest.fail("run this together with the tests above")
    assert len(made().sources["demo"].requests) >= EXAMPLES // 4
    statuses = {line["status"] for line in made().log()}
    # Which else there are depends on what was drawn.
    assert statuses >= {200, 400, 401}
    assert max(statuses) < 500
