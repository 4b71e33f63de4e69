"""A run's newest figures as gauges, which Ray's metrics agent shows to Prometheus."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

from ray.util.metrics import Gauge

from rm_ray.runs.history import Record

TAG = "rm_run"
"""Label with the run's name; Ray has its own labels for job, node and component."""


REPEAT_EVERY_S = 5.0
"""Ray forgets a gauge that is not set within twice its report interval, which is 10 s by default:
it would forget the last evaluation, or a step that is longer."""


class RunGauges:
    """One gauge for each metric, made when it first comes; all carry the run's name.

    While it is entered, a thread repeats the newest figures.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._figures: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)

    def __enter__(self) -> RunGauges:
        """Begin to repeat."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    def show(self, records: Iterable[Record]) -> None:
        """Show the newest of these metrics, and their step."""
        figures: dict[str, float] = {}
        for record in records:  # a run that resumes brings all that it has
            figures |= {"step": record.step, **record.metrics}
        for name, value in figures.items():
            self.set(name, value)

    def set(self, name: str, value: float) -> None:
        """Show one figure, by the name that it has in MLflow."""
        with self._lock:
            if name not in self._gauges:
                described = f"{name} of a run, as in MLflow"
                gauge = Gauge(gauge_name(name), description=described, tag_keys=(TAG,))
                self._gauges[name] = gauge.set_default_tags({TAG: self._run})
            self._figures[name] = value
            self._gauges[name].set(value)

    def _repeat(self) -> None:
        while not self._stop.wait(REPEAT_EVERY_S):
            with self._lock:
                for name, value in self._figures.items():
                    self._gauges[name].set(value)


def gauge_name(metric: str) -> str:
    """Return what a metric is called here; Ray puts ``ray_`` before it.

    ``train/rm/loss`` is ``rm_train_loss``, ``perf/goodput`` is ``rm_perf_goodput``.
    """
    return "rm_" + re.sub(r"\W", "_", metric.replace("/rm/", "/"))
