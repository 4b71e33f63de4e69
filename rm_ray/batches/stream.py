"""The plan's order, through Ray Data, to each rank's iterator.

Each rank runs an ordered Ray Data pipeline of its own: a range of steps, whose tasks plan the step
and gather this rank's micro-batches from the mapped token table. A step is planned where it is
read, so starting at step 1,000,000 costs what starting at step 0 does, and there is no
coordinator that all ranks share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import ray.data

from rm_ray.batches.loading import LoadedMicroBatch, load_step
from rm_ray.batches.plan import MicroBatch, Plan, PlanSettings
from rm_ray.data.cache.pair_tokens import PairLengths, PairTokens
from rm_ray.data.cache.token_table import TokenParts, TokenTable, open_table

MOST_TASKS = 256
"""Tasks of one pipeline; beyond them tasks cover more steps, so that start-up stays constant."""

STEPS_PER_TASK = 8

BLOCK_BYTES = 2 * 2**20
"""A task hands micro-batches over in blocks of about this size, without waiting for its end."""

TASKS_AT_ONCE = 2

READ_AHEAD_BYTES = 64 * 2**20
"""What a rank's pipeline may hold in the object store ahead of its reader."""

PREFETCHED = 4
"""Micro-batches held ready beside the one in use."""

_SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "position": pa.int32(),
        "num_micro_batches": pa.int32(),
        "rank": pa.int32(),
        "pairs": pa.list_(pa.int64()),
        "weights": pa.list_(pa.float32()),
        "margins": pa.list_(pa.float32()),
        "prompt_lengths": pa.list_(pa.int32()),
        "chosen_lengths": pa.list_(pa.int32()),
        "rejected_lengths": pa.list_(pa.int32()),
        "prefix_lengths": pa.list_(pa.int32()),
        "tokens": pa.list_(pa.int32()),
    }
)


@dataclass(frozen=True, kw_only=True)
class PlannedPairs:
    """What is streamed, small enough to send anywhere: the cache and the plan's settings."""

    cache: TokenParts
    settings: PlanSettings

    def plan(self, table: TokenTable) -> Plan:
        """Return the plan over the cache's pairs."""
        return Plan(lengths=table.lengths, settings=self.settings)


@dataclass(frozen=True, kw_only=True)
class RankStream:
    """One rank's share of the plan; what ``ray.train.get_dataset_shard`` returns here."""

    planned: PlannedPairs
    rank: int
    world_size: int

    def steps(self, first_step: int, num_steps: int) -> Iterator[list[LoadedMicroBatch]]:
        """Yield this rank's micro-batches of each step, in order, from ``first_step`` on."""
        rows = self._rows(first_step, num_steps) if first_step < num_steps else iter(())
        for step in range(first_step, num_steps):
            first = next(rows)
            micro_batches = [first, *islice(rows, first.plan.num_micro_batches - 1)]
            for position, micro_batch in enumerate(micro_batches):
                self._check(micro_batch.plan, step, position)
            yield micro_batches

    def _check(self, got: MicroBatch, step: int, position: int) -> None:
        expected = (step, position, self.rank)
        if (got.step, got.position, got.rank) != expected:
            raise RuntimeError(
                f"rank {self.rank} was sent the micro-batch of (step, position, rank) = "
                f"{(got.step, got.position, got.rank)} instead of {expected}"
            )

    def _rows(self, first_step: int, num_steps: int) -> Iterator[LoadedMicroBatch]:
        steps = range(first_step, num_steps)
        num_tasks = min(-(-len(steps) // STEPS_PER_TASK), MOST_TASKS)
        bounds = [first_step + len(steps) * i // num_tasks for i in range(num_tasks + 1)]
        tasks = [{"first": first, "end": end} for first, end in pairwise(bounds)]
        dataset = ray.data.from_items(tasks, override_num_blocks=num_tasks)
        # A task that waits for its reader must not hold a CPU that another rank's needs.
        dataset = dataset.map_batches(
            _load_steps,
            fn_args=(self,),
            batch_size=1,
            num_cpus=0,
            concurrency=TASKS_AT_ONCE,
        )
        dataset.context.target_max_block_size = BLOCK_BYTES
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = options.resource_limits.copy(object_store_memory=READ_AHEAD_BYTES)
        batches = dataset.iterator().iter_batches(
            batch_size=1, batch_format="pyarrow", prefetch_batches=PREFETCHED
        )
        return (_from_arrow(batch) for batch in batches)


def _load_steps(task: dict[str, np.ndarray], stream: RankStream) -> Iterator[pa.Table]:
    """Gather a rank's micro-batches of some steps; runs in a Ray Data task."""
    table = open_table(stream.planned.cache)
    plan = stream.planned.plan(table)
    for step in range(int(task["first"][0]), int(task["end"][0])):
        for micro_batch in load_step(
            table, plan, step, rank=stream.rank, world_size=stream.world_size
        ):
            yield _to_arrow(micro_batch)


def _to_arrow(micro_batch: LoadedMicroBatch) -> pa.Table:
    plan, pairs = micro_batch.plan, micro_batch.pairs
    row = {
        "step": plan.step,
        "position": plan.position,
        "num_micro_batches": plan.num_micro_batches,
        "rank": plan.rank,
        "pairs": plan.pairs,
        "weights": plan.weights,
        "margins": micro_batch.margins,
        "prompt_lengths": micro_batch.prompt_lengths,
        "chosen_lengths": pairs.lengths.chosen,
        "rejected_lengths": pairs.lengths.rejected,
        "prefix_lengths": pairs.lengths.prefix,
        "tokens": pairs.tokens,
    }
    return pa.table({name: [value] for name, value in row.items()}, schema=_SCHEMA)


def _from_arrow(table: pa.Table) -> LoadedMicroBatch:
    def array(name: str) -> np.ndarray:
        values: np.ndarray = table.column(name).combine_chunks().flatten().to_numpy()
        return values

    def number(name: str) -> int:
        return int(table.column(name)[0].as_py())

    return LoadedMicroBatch(
        plan=MicroBatch(
            step=number("step"),
            position=number("position"),
            num_micro_batches=number("num_micro_batches"),
            rank=number("rank"),
            pairs=array("pairs"),
            weights=array("weights"),
        ),
        margins=array("margins"),
        prompt_lengths=array("prompt_lengths"),
        pairs=PairTokens(
            tokens=array("tokens"),
            lengths=PairLengths(
                chosen=array("chosen_lengths"),
                rejected=array("rejected_lengths"),
                prefix=array("prefix_lengths"),
            ),
        ),
    )
