"""The server's numbers for Prometheus: requests, tokens, times, queues, and the tokens that the squeezed model saves.

Labels take only values that the settings or this package know, so that no client can make series up.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tokensqueeze.serving.admission import Load
from tokensqueeze.serving.request_record import RequestRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_TURNED_AWAY = frozenset({401, 403, 408, 413, 415, 429})
"""Of requests refused for who sent them, how, or how much was under way; 503 joins them where the server was stopping."""
DRAINING = "draining"
NONE = "none"
"""Label of a request without a model, or without a key."""


class BaseLength(Protocol):
    @property
    def base_length(self) -> float | None:
        """Mean tokens of the base model's completions, from the model card."""
        ...


class Mirror(Protocol):
    """A module like `ray.serve.metrics`: where a cluster's Prometheus looks."""

    Counter: Any
    Gauge: Any
    Histogram: Any


class ServingMetrics:
    """A registry of its own; `mirror` gets every number too, under the same names."""

    def __init__(self, models: Mapping[str, BaseLength], *, mirror: Mirror | None = None):
        self.registry = CollectorRegistry()
        self._base_lengths = {name: model.base_length for name, model in models.items()}
        made = _Instruments(self.registry, mirror)
        self._requests = made.counter("requests", "HTTP requests that ended.", "route", "model", "status", "key")
        self._refusals = made.counter("refusals", "Requests turned away for other reasons than what they ask for.", "reason")
        self._tokens = made.counter("tokens", "Tokens of prompts, of reasoning and of answers.", "model", "kind")
        self._resumed = made.counter("resumed_streams", "Completions that another replica took up where one died.", "model")
        self._closed = made.counter("thinking_closed", "Completions whose thinking was closed at its budget.", "model")
        self._first_token = made.histogram(
            "time_to_first_token_seconds",
            "From a request's arrival to the first token of any of its choices.",
            _FIRST_TOKEN_BUCKETS,
            "model",
        )
        self._between = made.weighted_histogram(
            "inter_token_seconds",
            "Between a choice's tokens; tokens that came in one piece share its time.",
            _TOKEN_BUCKETS,
            "model",
        )
        self._duration = made.histogram(
            "request_duration_seconds", "From a request's arrival to its end.", _DURATION_BUCKETS, "route", "model"
        )
        self._in_flight = made.gauge("requests_in_flight", "HTTP requests under way.")
        self._running = made.gauge("choices_running", "Completions under way, those that wait included.")
        self._queued = made.gauge("choices_queued", "Completions that wait for their first token.")
        self._replicas = made.gauge("replicas_ready", "Engines that can take requests.", "model")
        self._saved = made.gauge(
            "tokens_saved",
            "Estimate: for each finished completion, the base model's mean length according to the model card, less the "
            "tokens it took. The questions asked here are not those the card was measured on. It falls where completions "
            "are longer than that.",
            "model",
        )
        for name, base_length in self._base_lengths.items():
            self._replicas.set(0, name)
            if base_length is not None:
                self._saved.add(0, name)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)

    def observe(self, record: RequestRecord) -> None:
        """Count a request that ended."""
        model = record.model or NONE
        duration = record.elapsed() if record.duration_seconds is None else record.duration_seconds
        self._requests.add(1, record.route, model, str(record.status), record.key or NONE)
        self._duration.observe(duration, record.route, model)
        if record.status in _TURNED_AWAY or record.error == DRAINING:
            self._refusals.add(1, record.error or str(record.status))
        if record.model is not None:
            self._observe_completions(record, record.model)

    def observe_load(self, load: Load) -> None:
        self._running.set(load.running)
        self._queued.set(load.queued)

    def observe_in_flight(self, requests: int) -> None:
        self._in_flight.set(requests)

    def observe_replicas(self, running: Mapping[str, int]) -> None:
        for model, engines in running.items():
            self._replicas.set(engines, model)

    def _observe_completions(self, record: RequestRecord, model: str) -> None:
        if record.first_token_seconds is not None:
            self._first_token.observe(record.first_token_seconds, model)
            # What never reached an engine has no tokens to count.
            self._tokens.add(record.prompt_tokens, model, "prompt")
        self._tokens.add(record.reasoning_tokens, model, "reasoning")
        self._tokens.add(record.answer_tokens, model, "answer")
        self._resumed.add(record.resumed, model)
        self._closed.add(record.thinking_closed, model)
        for seconds, tokens in record.inter_token_seconds:
            self._between.observe(seconds, tokens, model)
        base_length = self._base_lengths.get(model)
        if base_length is not None and record.completion_lengths:
            self._saved.add(sum(base_length - tokens for tokens in record.completion_lengths), model)


class _Instruments:
    """Makes each instrument once here and, if there is one, once in the mirror."""

    def __init__(self, registry: CollectorRegistry, mirror: Mirror | None):
        self._registry, self._mirror = registry, mirror

    def counter(self, name: str, about: str, *labels: str) -> "_Counter":
        name = f"tokensqueeze_{name}"
        other = self._mirror and self._mirror.Counter(name, description=about, tag_keys=labels)
        return _Counter(Counter(name, about, labels, registry=self._registry), labels, other)

    def gauge(self, name: str, about: str, *labels: str) -> "_Gauge":
        name = f"tokensqueeze_{name}"
        other = self._mirror and self._mirror.Gauge(name, description=about, tag_keys=labels)
        return _Gauge(Gauge(name, about, labels, registry=self._registry), labels, other)

    def histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> "_Histogram":
        name = f"tokensqueeze_{name}"
        return _Histogram(
            Histogram(name, about, labels, buckets=buckets, registry=self._registry),
            labels,
            self._mirrored_histogram(name, about, buckets, labels),
        )

    def weighted_histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> "_WeightedHistogram":
        name = f"tokensqueeze_{name}"
        made = _WeightedHistogram(name, about, buckets, labels, self._mirrored_histogram(name, about, buckets, labels))
        self._registry.register(made)
        return made

    def _mirrored_histogram(self, name: str, about: str, buckets: Sequence[float], labels: tuple[str, ...]) -> Any:
        return self._mirror and self._mirror.Histogram(name, description=about, boundaries=list(buckets), tag_keys=labels)


class _Counter:
    def __init__(self, own: Counter, labels: tuple[str, ...], other: Any):
        self._own, self._labels, self._other = own, labels, other

    def add(self, value: float, *labels: str) -> None:
        if value > 0:
            self._own.labels(*labels).inc(value)
            if self._other:
                self._other.inc(value, dict(zip(self._labels, labels, strict=True)))


class _Gauge:
    def __init__(self, own: Gauge, labels: tuple[str, ...], other: Any):
        self._own, self._labels, self._other = own, labels, other
        self._values: dict[tuple[str, ...], float] = defaultdict(float)

    def set(self, value: float, *labels: str) -> None:
        self._values[labels] = value
        (self._own.labels(*labels) if labels else self._own).set(value)
        if self._other:
            self._other.set(value, dict(zip(self._labels, labels, strict=True)))

    def add(self, value: float, *labels: str) -> None:
        self.set(self._values[labels] + value, *labels)


class _Histogram:
    def __init__(self, own: Histogram, labels: tuple[str, ...], other: Any):
        self._own, self._labels, self._other = own, labels, other

    def observe(self, value: float, *labels: str) -> None:
        self._own.labels(*labels).observe(value)
        if self._other:
            self._other.observe(value, dict(zip(self._labels, labels, strict=True)))


class _WeightedHistogram(Collector):
    """A histogram that takes many equal values in one step; the client library's would take each token by itself."""

    def __init__(self, name: str, about: str, buckets: Sequence[float], labels: tuple[str, ...], other: Any):
        self._name, self._about, self._labels, self._other = name, about, labels, other
        self._bounds = (*buckets, float("inf"))
        self._counts: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * len(self._bounds))
        self._sums: dict[tuple[str, ...], float] = defaultdict(float)

    def observe(self, value: float, weight: int, *labels: str) -> None:
        self._counts[labels][bisect_left(self._bounds, value)] += weight
        self._sums[labels] += value * weight
        if self._other:
            tags = dict(zip(self._labels, labels, strict=True))
            for _ in range(weight):
                self._other.observe(value, tags)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        for labels, counts in list(self._counts.items()):
            family.add_metric(labels, list(self._cumulative(counts)), self._sums[labels])
        yield family

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._about, labels=self._labels)]

    def _cumulative(self, counts: Sequence[int]) -> Iterator[tuple[str, float]]:
        total = 0
        for bound, count in zip(self._bounds, counts, strict=True):
            total += count
            yield floatToGoString(bound), total
