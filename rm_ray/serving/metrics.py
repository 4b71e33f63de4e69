"""Metrics of the server and its replicas, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from rm_ray.data.cache.group_tokens import shared_prefix_of_arrays

LATENCY_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

BATCH_TOKENS = tuple(float(2**i) for i in range(6, 19))

MEMORY = 0.9
"""Weight of the past in the tokens per second, after each forward pass."""


@dataclass(kw_only=True)
class RequestMetrics:
    """Requests by route and status, and how long the answers took."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._requests = Counter(
            "rm_serve_requests", "Answers sent", ["route", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "rm_serve_latency_seconds",
            "Time from a request's headers to its answer",
            ["route"],
            buckets=LATENCY_S,
            registry=self.registry,
        )
        self.num_requests = 0
        self.num_refused = 0
        """Answers that say what the client should do: 4xx, and 503, which is to be sent again."""
        self.num_failed = 0
        self.num_rewards = 0
        self.num_tokens = 0

    def add(self, route: str, status: int, seconds: float) -> None:
        """Count an answer; the totals leave out 499, which nobody read."""
        self.num_requests += status != 499
        self.num_refused += status == 503 or 400 <= status < 499
        self.num_failed += status >= 500 and status != 503
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def add_rewards(self, rewards: int, tokens: int) -> None:
        """Count what an answer holds."""
        self.num_rewards += rewards
        self.num_tokens += tokens


@dataclass(kw_only=True)
class BatchMetrics:
    """What one replica has pending and has computed."""

    replica: str
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    tokens_per_second: float = 1000.0
    """Tokens of whole conversations per second of the last forward passes; a guess before them."""

    def __post_init__(self) -> None:
        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(f"rm_serve_{name}", text, ["replica"], registry=self.registry)
            return made.labels(self.replica)

        def counter(name: str, text: str) -> Counter:
            made = Counter(f"rm_serve_{name}", text, ["replica"], registry=self.registry)
            return made.labels(self.replica)

        self._pending = gauge("pending_tokens", "Tokens that wait or are computed")
        self._waiting = gauge("pending_conversations", "Conversations that wait")
        self._speed = gauge("tokens_per_second", "Tokens of conversations, over the last batches")
        self._rewards = counter("rewards", "Conversations scored")
        self._tokens = counter("tokens", "Tokens of the conversations scored")
        self._distinct = counter("distinct_tokens", "The same, shared prefixes counted once")
        self._cached = counter("cached_tokens", "Those of them that an earlier pass had computed")
        self._seconds = counter("model_seconds", "Time in forward passes")
        self._batches = Histogram(
            "rm_serve_batch_tokens",
            "Tokens that a forward pass computes",
            ["replica"],
            buckets=BATCH_TOKENS,
            registry=self.registry,
        ).labels(self.replica)
        self.num_rewards = 0
        self.num_tokens = 0
        self.num_computed = 0

    def set_pending(self, *, tokens: int, conversations: int) -> None:
        """Show what is pending."""
        self._pending.set(tokens)
        self._waiting.set(conversations)

    def add(
        self,
        *,
        num_conversations: int,
        num_tokens: int,
        prompts: Sequence[Sequence[np.ndarray]],
        cached: Sequence[int],
        seconds: float,
    ) -> None:
        """Count a forward pass over groups of conversations.

        ``cached`` are the tokens at the start of each group's first conversation that an earlier
        pass had computed.
        """
        shared = [shared_prefix_of_arrays(ids) for ids in prompts]
        repeated = sum((len(ids) - 1) * n for ids, n in zip(prompts, shared, strict=True))
        distinct, not_computed = num_tokens - repeated, sum(map(min, cached, shared))
        self.num_rewards += num_conversations
        self.num_tokens += num_tokens
        self.num_computed += distinct - not_computed
        self._rewards.inc(num_conversations)
        self._tokens.inc(num_tokens)
        self._distinct.inc(distinct)
        self._cached.inc(not_computed)
        self._seconds.inc(seconds)
        self._batches.observe(distinct - not_computed)
        now = num_tokens / max(seconds, 1e-6)
        is_first = self.num_rewards == num_conversations
        self.tokens_per_second = (
            now if is_first else MEMORY * self.tokens_per_second + (1 - MEMORY) * now
        )
        self._speed.set(self.tokens_per_second)

    def collect(self) -> list[Metric]:
        """Return the metrics as values that can travel to another process."""
        return list(self.registry.collect())


@dataclass(frozen=True)
class _Merged:
    metrics: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def to_text(parts: Iterable[Iterable[Metric]]) -> bytes:
    """Return metrics of several processes in Prometheus' text format, each name described once."""
    merged: dict[str, Metric] = {}
    for metric in (metric for part in parts for metric in part):
        known = merged.setdefault(
            metric.name, Metric(metric.name, metric.documentation, metric.type)
        )
        known.samples.extend(metric.samples)
    return generate_latest(_Merged([*merged.values()]))
