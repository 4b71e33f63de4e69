"""Loaded steps -> micro-batches on the device, one step after another, each laid out ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from rm_ray.batches.collate import Collator, ReadyMicroBatch
from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.read_ahead import read_ahead
from rm_ray.tracking.heartbeat import Heartbeat


def ready_steps(
    steps: Iterable[list[LoadedMicroBatch]],
    collator: Collator,
    heartbeat: Heartbeat,
    phase: Literal["training", "evaluating"],
    count_step: Callable[[], int],
) -> Iterator[list[ReadyMicroBatch]]:
    """Lay steps out ahead of their turn, and move each when it is due.

    The heart is in ``phase``, at the step that ``count_step`` gives, while the reader computes, and
    "waiting" until the next step is there: the first one may take minutes, as its pipeline starts.
    """
    heartbeat.enter("waiting", count_step())
    for micro_batches in map(collator.move, read_ahead(map(collator.lay_out, steps))):
        heartbeat.enter(phase, count_step())
        yield micro_batches
        heartbeat.enter("waiting", count_step())
    heartbeat.enter(phase, count_step())
