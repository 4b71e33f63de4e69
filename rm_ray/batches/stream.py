"""The plan -> each rank's iterator of steps, streamed through Ray Data.

Each rank runs its own ordered Ray Data pipeline over a range of steps. Its tasks plan a step and
gather this rank's micro-batches from the memory-mapped token table. Steps are planned on demand, so
starting at step 1,000,000 costs no more than starting at step 0, and ranks share no coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import ray.data

from rm_ray.batches.columns import from_arrow, to_arrow
from rm_ray.batches.loading import LoadedMicroBatch, load_step
from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.data.cache.token_table import TokenTable, open_table

MAX_TASKS = 256
"""Most tasks of one pipeline; longer runs put more steps in a task to keep start-up constant."""

STEPS_PER_TASK = 8

BLOCK_BYTES = 2 * 2**20
"""Approximate size of the blocks in which a running task hands over micro-batches."""

CONCURRENT_TASKS = 2

READ_AHEAD_BYTES = 64 * 2**20
"""Object store memory that a rank's pipeline may fill ahead of its reader."""

PREFETCH_BATCHES = 4
"""Micro-batches kept ready besides the one in use."""


@dataclass(frozen=True, kw_only=True)
class PlannedGroups:
    """The cache and the plan's settings: enough to stream from, and small enough to pickle."""

    cache: TokenParts
    settings: PlanSettings

    def plan(self, table: TokenTable) -> Plan:
        """Return the plan for the cache's groups."""
        return Plan(lengths=table.lengths, settings=self.settings)


@dataclass(frozen=True, kw_only=True)
class RankStream:
    """One rank's share of the plan; ``ray.train.get_dataset_shard`` returns it."""

    planned: PlannedGroups
    rank: int
    world_size: int

    def steps(self, first_step: int, num_steps: int) -> Iterator[list[LoadedMicroBatch]]:
        """Yield this rank's micro-batches of each step, in order, from ``first_step`` on."""
        if first_step < num_steps:
            yield from take_steps(
                self._rows(first_step, num_steps), range(first_step, num_steps), rank=self.rank
            )

    def _rows(self, first_step: int, num_steps: int) -> Iterator[LoadedMicroBatch]:
        steps = range(first_step, num_steps)
        num_tasks = min(-(-len(steps) // STEPS_PER_TASK), MAX_TASKS)
        bounds = [first_step + len(steps) * i // num_tasks for i in range(num_tasks + 1)]
        tasks = [{"first": first, "end": end} for first, end in pairwise(bounds)]
        dataset = ray.data.from_items(tasks, override_num_blocks=num_tasks)
        # A task waiting for its reader must not hold a CPU that another rank's task needs.
        dataset = dataset.map_batches(
            _load_steps,
            fn_args=(self,),
            batch_size=1,
            num_cpus=0,
            concurrency=CONCURRENT_TASKS,
        )
        dataset.context.target_max_block_size = BLOCK_BYTES
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = options.resource_limits.copy(object_store_memory=READ_AHEAD_BYTES)
        batches = dataset.iterator().iter_batches(
            batch_size=1, batch_format="pyarrow", prefetch_batches=PREFETCH_BATCHES
        )
        return (from_arrow(batch) for batch in batches)


def take_steps(
    micro_batches: Iterator[LoadedMicroBatch], steps: Iterable[int], *, rank: int
) -> Iterator[list[LoadedMicroBatch]]:
    """Group a stream into steps, by the count that each step's first micro-batch carries.

    Raises:
        RuntimeError: a micro-batch belongs to another step or rank, or is out of order.
    """
    for step in steps:
        first = next(micro_batches)
        taken = [first, *islice(micro_batches, first.plan.num_micro_batches - 1)]
        for position, micro_batch in enumerate(taken):
            got, expected = micro_batch.plan, (step, position, rank)
            if (got.step, got.position, got.rank) != expected:
                raise RuntimeError(
                    f"rank {rank} received the micro-batch (step, position, rank) = "
                    f"{(got.step, got.position, got.rank)}, expected {expected}"
                )
        yield taken


def _load_steps(task: dict[str, np.ndarray], stream: RankStream) -> Iterator[pa.Table]:
    """Yield a rank's micro-batches of some steps, as tables; runs in a Ray Data task."""
    table = open_table(stream.planned.cache)
    plan = stream.planned.plan(table)
    for step in range(int(task["first"][0]), int(task["end"][0])):
        for micro_batch in load_step(
            table, plan, step, rank=stream.rank, world_size=stream.world_size
        ):
            yield to_arrow(micro_batch)
