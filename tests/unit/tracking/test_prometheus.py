import threading
from collections import defaultdict

import pytest

from rm_ray.runs.history import Record, RecordKind
from rm_ray.tracking import prometheus
from rm_ray.tracking.prometheus import RunGauges, gauge_name


class RecordingGauge:
    """Stands in for Ray's gauge, and records its values."""

    values: defaultdict[tuple[str, str], list[float]]
    repeated: threading.Event

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name = name

    def set_default_tags(self, tags: dict[str, str]) -> "RecordingGauge":
        self.run = tags["rm_run"]
        return self

    def set(self, value: float) -> None:
        values = self.values[self.name, self.run]
        values.append(value)
        if len(values) == 3:
            self.repeated.set()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[float]]:
    monkeypatch.setattr(RecordingGauge, "values", defaultdict(list), raising=False)
    monkeypatch.setattr(RecordingGauge, "repeated", threading.Event(), raising=False)
    monkeypatch.setattr(prometheus, "Gauge", RecordingGauge)
    return RecordingGauge.values


def record(kind: RecordKind, step: int, **metrics: float) -> Record:
    metrics = {f"{kind}/rm/{name}": value for name, value in metrics.items()}
    return Record(step=step, kind=kind, episode=8 * step, hours=0.0, metrics=metrics)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("train/rm/loss", "rm_train_loss"),
        ("eval/rm/reward_margin", "rm_eval_reward_margin"),
        ("perf/pairs_per_second", "rm_perf_pairs_per_second"),
        ("episode", "rm_episode"),
    ],
)
def test_gauges_have_names_that_prometheus_allows(metric: str, name: str):
    assert gauge_name(metric) == name


def test_only_the_newest_of_many_records_is_exported(shown):
    run = RunGauges("mine")
    run.show(
        [record("train", 1, loss=0.7), record("eval", 1, loss=0.6), record("train", 2, loss=1)]
    )
    assert shown == {
        ("rm_step", "mine"): [2],
        ("rm_train_loss", "mine"): [1],
        ("rm_eval_loss", "mine"): [0.6],
    }


def test_a_value_is_repeated_because_ray_drops_it(shown, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prometheus, "REPEAT_EVERY_S", 0.001)
    with RunGauges("mine") as run:
        run.set("workers", 8)
        assert RecordingGauge.repeated.wait(60)
    assert set(shown["rm_workers", "mine"]) == {8}
    assert not run._thread.is_alive()


def test_a_late_evaluation_does_not_set_the_step_back(shown):
    run = RunGauges("mine")
    run.show([record("train", 8, loss=0.7)])
    run.show([record("eval", 4, loss=0.6)])
    assert shown["rm_step", "mine"] == [8]
    assert shown["rm_eval_loss", "mine"] == [0.6]
