"""Prometheus gauges of a run's latest metrics, exported by Ray's metrics agent."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

from ray.util.metrics import Gauge

from rm_ray.runs.history import Record

TAG = "rm_run"
"""Label with the run's name; Ray has its own labels for job, node and component."""


REPEAT_EVERY_S = 5.0
"""Ray drops a gauge that is not set within twice its report interval (10 s by default), so the last
evaluation, or any metric during a long step, would disappear."""


class RunGauges:
    """One gauge per metric, created on first use and labelled with the run's name.

    Inside the context, a thread keeps repeating the latest values.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._figures: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)

    def __enter__(self) -> RunGauges:
        """Start repeating values."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop repeating values."""
        self._stop.set()
        self._thread.join()

    def show(self, records: Iterable[Record]) -> None:
        """Export the newest value of each metric, and the step that training is at."""
        figures: dict[str, float] = {}
        for record in records:  # a resumed run posts its whole history
            figures |= record.metrics
            if record.kind == "train":  # an evaluation beside training is of an earlier step
                figures["step"] = record.step
        for name, value in figures.items():
            self.set(name, value)

    def set(self, name: str, value: float) -> None:
        """Export one value, under its MLflow name."""
        with self._lock:
            if name not in self._gauges:
                description = f"{name} of a run, as in MLflow"
                gauge = Gauge(gauge_name(name), description=description, tag_keys=(TAG,))
                self._gauges[name] = gauge.set_default_tags({TAG: self._run})
            self._figures[name] = value
            self._gauges[name].set(value)

    def _repeat(self) -> None:
        while not self._stop.wait(REPEAT_EVERY_S):
            with self._lock:
                for name, value in self._figures.items():
                    self._gauges[name].set(value)


def gauge_name(metric: str) -> str:
    """Return the gauge's name of a metric, which Ray prefixes with ``ray_``.

    ``train/rm/loss`` is ``rm_train_loss``, ``perf/goodput`` is ``rm_perf_goodput``.
    """
    return "rm_" + re.sub(r"\W", "_", metric.replace("/rm/", "/"))
