"""A run's newest figures as gauges, which Ray's metrics agent shows to Prometheus."""

from __future__ import annotations

import re

from ray.util.metrics import Gauge

from rm_ray.tracking.history import Record

TAG = "rm_run"
"""Label with the run's name; Ray has its own labels for job, node and component."""


class RunGauges:
    """One gauge for each metric, made when it first comes; all carry the run's name."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def show(self, record: Record) -> None:
        """Show the metrics of a step, and the step."""
        self.set("step", record.step)
        for name, value in record.metrics.items():
            self.set(name, value)

    def set(self, name: str, value: float) -> None:
        """Show one figure, by the name that it has in MLflow."""
        gauge = self._gauges.get(name)
        if gauge is None:
            described = f"{name} of a run, as in MLflow"
            gauge = Gauge(gauge_name(name), description=described, tag_keys=(TAG,))
            gauge.set_default_tags({TAG: self._run})
            self._gauges[name] = gauge
        gauge.set(value)


def gauge_name(metric: str) -> str:
    """Return what a metric is called here; Ray puts ``ray_`` before it.

    ``train/rm/loss`` is ``rm_train_loss``, ``perf/goodput`` is ``rm_perf_goodput``.
    """
    return "rm_" + re.sub(r"\W", "_", metric.replace("/rm/", "/"))
