"""The numbers for Prometheus, read back through its own parser."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tokensqueeze.serving.admission import Load
from tokensqueeze.serving.metrics import ServingMetrics
from tokensqueeze.serving.request_record import RequestRecord

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Card:
    base_length: float | None = None


def numbers(metrics: ServingMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def number(metrics: ServingMetrics, name: str, **labels: str) -> float | None:
    return numbers(metrics).get((f"tokensqueeze_{name}", frozenset(labels.items())))


def ended(**changes: object) -> RequestRecord:
    record = RequestRecord("req-1", CHAT, key="ann", model="small", status=200, duration_seconds=2.0)
    for name, value in changes.items():
        assert hasattr(record, name)
        setattr(record, name, value)
    return record


def test_requests_are_counted_by_route_model_status_and_key():
    metrics = ServingMetrics({"small": Card()})
    for record in (ended(), ended(), ended(status=499), ended(route="none", model=None, key=None, status=404)):
        metrics.observe(record)
    assert number(metrics, "requests_total", route=CHAT, model="small", status="200", key="ann") == 2
    assert number(metrics, "requests_total", route=CHAT, model="small", status="499", key="ann") == 1
    assert number(metrics, "requests_total", route="none", model="none", status="404", key="none") == 1
    assert number(metrics, "request_duration_seconds_sum", route=CHAT, model="small") == 6
    assert number(metrics, "request_duration_seconds_bucket", route=CHAT, model="small", le="1.0") == 0
    assert number(metrics, "request_duration_seconds_bucket", route=CHAT, model="small", le="2.5") == 3


def test_tokens_are_counted_by_kind_and_prompts_only_where_an_engine_read_them():
    metrics = ServingMetrics({"small": Card()})
    metrics.observe(ended(prompt_tokens=10, reasoning_tokens=30, answer_tokens=5, first_token_seconds=0.02))
    metrics.observe(ended(status=429, prompt_tokens=1000, error="queue_full"))
    assert number(metrics, "tokens_total", model="small", kind="prompt") == 10
    assert number(metrics, "tokens_total", model="small", kind="reasoning") == 30
    assert number(metrics, "tokens_total", model="small", kind="answer") == 5
    assert number(metrics, "time_to_first_token_seconds_count", model="small") == 1
    assert number(metrics, "time_to_first_token_seconds_bucket", model="small", le="0.01") == 0
    assert number(metrics, "time_to_first_token_seconds_bucket", model="small", le="0.025") == 1


def test_time_between_tokens_weighs_each_token_once():
    metrics = ServingMetrics({"small": Card()})
    metrics.observe(ended(inter_token_seconds=[(0.004, 10), (0.005, 2), (0.2, 1), (9.0, 1)]))
    counted = {
        le: number(metrics, "inter_token_seconds_bucket", model="small", le=le)
        for le in ("0.0025", "0.005", "0.25", "2.5", "+Inf")
    }
    assert counted == {"0.0025": 0, "0.005": 12, "0.25": 13, "2.5": 13, "+Inf": 14}
    assert number(metrics, "inter_token_seconds_count", model="small") == 14
    total = number(metrics, "inter_token_seconds_sum", model="small")
    assert total is not None and abs(total - (0.04 + 0.01 + 0.2 + 9)) < 1e-9


def test_tokens_saved_are_the_base_models_length_less_each_completions():
    metrics = ServingMetrics({"small": Card(100.0), "base": Card()})
    assert number(metrics, "tokens_saved", model="small") == 0
    metrics.observe(ended(completion_lengths=[40, 70]))
    assert number(metrics, "tokens_saved", model="small") == 90
    metrics.observe(ended(completion_lengths=[250]))
    assert number(metrics, "tokens_saved", model="small") == -60
    metrics.observe(ended(model="base", completion_lengths=[40]))
    assert number(metrics, "tokens_saved", model="base") is None


def test_refusals_are_counted_by_reason():
    metrics = ServingMetrics({"small": Card()})
    refused = [(401, "invalid_api_key"), (429, "queue_full"), (429, "queue_full"), (503, "draining"), (413, "body_too_long")]
    for status, error in [*refused, (400, "invalid_value"), (503, "engine_unavailable")]:
        metrics.observe(ended(model=None, status=status, error=error))
    counted = {
        dict(labels)["reason"]: value for (name, labels), value in numbers(metrics).items() if name.endswith("refusals_total")
    }
    assert counted == {"invalid_api_key": 1, "queue_full": 2, "draining": 1, "body_too_long": 1}


def test_loads_and_replicas_are_what_was_last_said():
    metrics = ServingMetrics({"small": Card(), "base": Card()})
    assert number(metrics, "replicas_ready", model="base") == 0
    metrics.observe_load(Load(running=5, queued=2))
    metrics.observe_in_flight(3)
    metrics.observe_replicas({"small": 2})
    assert number(metrics, "choices_running") == 5
    assert number(metrics, "choices_queued") == 2
    assert number(metrics, "requests_in_flight") == 3
    assert number(metrics, "replicas_ready", model="small") == 2


def test_resumed_streams_and_closed_thinking_are_counted():
    metrics = ServingMetrics({"small": Card()})
    metrics.observe(ended(resumed=2, thinking_closed=1))
    assert number(metrics, "resumed_streams_total", model="small") == 2
    assert number(metrics, "thinking_closed_total", model="small") == 1


@dataclass
class Told:
    """A second place for numbers, as `ray.serve.metrics` is: remembers what each instrument was told."""

    name: str
    tag_keys: tuple[str, ...]
    values: list[tuple[float, Mapping[str, str]]]

    def inc(self, value: float, tags: Mapping[str, str]) -> None:
        self.values.append((value, tags))

    set = observe = inc


@dataclass
class SecondPlace:
    told: dict[str, Told] = field(default_factory=dict)

    def _made(self, name: str, *, description: str, tag_keys: tuple[str, ...], boundaries: list[float] | None = None) -> Any:
        assert description
        self.told[name] = Told(name, tag_keys, [])
        return self.told[name]

    Counter = Gauge = Histogram = _made


def test_a_second_place_gets_every_number_under_the_same_names():
    second = SecondPlace()
    metrics = ServingMetrics({"small": Card(100.0)}, mirror=second)
    metrics.observe(ended(answer_tokens=7, first_token_seconds=0.5, inter_token_seconds=[(0.01, 3)], completion_lengths=[60]))
    metrics.observe_load(Load(running=4, queued=1))
    told = {name.removeprefix("tokensqueeze_"): instrument.values for name, instrument in second.told.items()}
    assert told["requests"] == [(1, {"route": CHAT, "model": "small", "status": "200", "key": "ann"})]
    assert told["tokens"] == [(7, {"model": "small", "kind": "answer"})]
    assert told["time_to_first_token_seconds"] == [(0.5, {"model": "small"})]
    assert told["inter_token_seconds"] == [(0.01, {"model": "small"})] * 3
    assert told["request_duration_seconds"] == [(2.0, {"route": CHAT, "model": "small"})]
    assert told["tokens_saved"][-1] == (40, {"model": "small"})
    assert told["choices_queued"] == [(1, {})]
    exported = {family.name for family in text_string_to_metric_families(metrics.text().decode())}
    assert set(second.told) <= exported
