"""Loaded steps -> micro-batches on the device, laid out in advance."""

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
    current_step: Callable[[], int],
) -> Iterator[list[ReadyMicroBatch]]:
    """Yield the micro-batches of each step, laid out in advance and moved to the device when due.

    The heartbeat is in ``phase``, at ``current_step()``, while the caller computes, and "waiting"
    until the next step is ready. The first step may take minutes while the pipeline starts.
    """
    heartbeat.enter("waiting", current_step())
    for micro_batches in map(collator.move, read_ahead(map(collator.lay_out, steps))):
        heartbeat.enter(phase, current_step())
        yield micro_batches
        heartbeat.enter("waiting", current_step())
    heartbeat.enter(phase, current_step())
