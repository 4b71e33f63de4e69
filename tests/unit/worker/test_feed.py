import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from rm_ray.worker import loop
from rm_ray.worker.feed import ready_steps


class Recorder:
    """A heart that keeps what it was told."""

    def __init__(self) -> None:
        self.entered: list[tuple[str, int]] = []
        self.spent: dict[str, float] = {}

    def enter(self, phase: str, step: int) -> None:
        self.entered.append((phase, step))

    def beat(self) -> None:
        pass


COLLATOR = SimpleNamespace(lay_out=lambda step: [*step, "laid out"], move=lambda step: step)


def test_a_step_is_waited_for_and_then_computed():
    heartbeat: Any = Recorder()
    computed = []
    for step in ready_steps([["a"], ["b"]], COLLATOR, heartbeat, "training", lambda: 7):
        computed.append((step, heartbeat.entered[-1]))

    assert computed == [
        (["a", "laid out"], ("training", 7)),
        (["b", "laid out"], ("training", 7)),
    ]
    assert heartbeat.entered == [("waiting", 7), ("training", 7)] * 3


def test_an_evaluation_waits_while_its_pipeline_starts(monkeypatch):
    heartbeat: Any = Recorder()
    at_start, at_work = [], []

    def steps(first: int, total: int) -> Iterator[list[str]]:
        time.sleep(0.05)  # as the pipeline takes to start
        at_start.append(heartbeat.entered[-1])
        yield from [["a"]] * total

    def evaluate(engine: Any, steps: Any, *_: Any, **__: Any) -> None:
        at_work.extend(heartbeat.entered[-1] for _ in steps)

    shard = SimpleNamespace(steps=steps)
    monkeypatch.setattr(loop.ray.train, "get_dataset_shard", lambda name: shard)
    monkeypatch.setattr(loop, "evaluate_held_out", evaluate)
    state: Any = SimpleNamespace(
        job=SimpleNamespace(
            eval_steps=SimpleNamespace(total=3),
            tokenizer=None,
            config=SimpleNamespace(evaluation=SimpleNamespace(sample_rows=0)),
        ),
        progress=SimpleNamespace(step=40, spend=lambda what, seconds: None),
        evaluated_at=-1,
        heartbeat=heartbeat,
        engine=None,
        collator=COLLATOR,
        is_stopping=False,
    )
    loop.run_evaluation(state)

    assert at_start == [("waiting", 40)]
    assert at_work == [("evaluating", 40)] * 3
    assert heartbeat.entered[-1] == ("evaluating", 40)  # ranks still add up what they found
