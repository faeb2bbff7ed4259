"""The Grafana dashboard shows what the server measures: every name and label in it is one of the server's."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tokensqueeze.serving.metrics import ServingMetrics
from tokensqueeze.serving.request_record import RequestRecord

DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster" / "grafana_serving.json").read_text())
METRIC = re.compile(r'\{__name__=~"\(ray_\)\?(tokensqueeze_\w+)"')
GROUPED = re.compile(r"\bby \(([^)]*)\)")
SHOWN = [
    "requests_total",
    "refusals_total",
    "tokens_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_seconds_bucket",
    "choices_queued",
    "replicas_ready",
    "tokens_saved",
]


@dataclass
class Model:
    base_length: float | None = 100.0


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Labels of every series that a server has after an answered request and a refused one."""
    metrics = ServingMetrics({"squeezed": Model()})
    answered = RequestRecord("a", "/v1/chat/completions", key="me", model="squeezed", status=200, prompt_tokens=3)
    answered.reasoning_tokens, answered.answer_tokens, answered.completion_lengths = 5, 2, [7]
    answered.thinking_closed = answered.resumed = 1
    answered.first_token_seconds, answered.inter_token_seconds = 0.1, [(0.01, 6)]
    metrics.observe(answered)
    metrics.observe(RequestRecord("b", "/v1/chat/completions", status=429, error="queue_full"))
    metrics.observe_in_flight(1)
    found: dict[str, set[str]] = defaultdict(set)
    for family in metrics.registry.collect():
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return found


def test_every_metric_of_the_dashboard_is_one_the_server_has_with_the_labels_it_is_grouped_by(labels: dict[str, set[str]]):
    for expression in expressions():
        (name,) = METRIC.findall(expression)
        assert name in labels, f"{expression}: the server has no {name}"
        wanted = {label.strip() for group in GROUPED.findall(expression) for label in group.split(",")}
        wanted |= set(re.findall(r'(\w+)=~"(?:\$model|\[45\])', expression))
        assert wanted <= labels[name], f"{expression}: {name} has only {sorted(labels[name])}"


@pytest.mark.parametrize("name", SHOWN)
def test_the_dashboard_shows(name: str):
    assert any(f"tokensqueeze_{name}" in METRIC.findall(expression) for expression in expressions())


def test_panels_have_their_own_numbers_and_places():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
