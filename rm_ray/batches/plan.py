"""The training plan: each group's step, rank and micro-batch.

The groups of a step depend on (seed, epoch, global_batch_size, data) but never on the number of
workers, which only changes how a step is spread over ranks and micro-batches.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from rm_ray.batches.spread import Spread, spread_packed, spread_padded
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.group_tokens import GroupLengths


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The groups of one forward pass on one rank.

    ``groups`` ``[G]`` are indices; ``weights`` ``[G]`` are 1.0 for a group that counts, and 0.0 for
    a filler that keeps a rank without groups in step with the others.
    """

    step: int
    position: int
    num_micro_batches: int
    rank: int
    groups: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The settings that, with the groups' lengths, determine a plan."""

    global_batch_size: int
    tokens_per_micro_batch: int
    layout: Layout = "packed"
    attention_weight: float = 0.0
    """Cost of one query-key product, relative to the rest of one token's work."""
    seed: int = 0
    epochs: int = 1
    max_episodes: int | None = None
    shuffle: bool = True


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The number of steps in a run over ``num_groups`` groups, and the groups in each."""

    num_groups: int
    settings: PlanSettings

    @property
    def num_episodes(self) -> int:
        """Groups trained on in the whole run; a group counts once per epoch."""
        whole = self.num_groups * self.settings.epochs
        limit = self.settings.max_episodes
        return whole if limit is None else min(whole, limit)

    @property
    def per_epoch(self) -> int:
        """Steps of a whole epoch; the last may hold fewer groups."""
        return -(-self.num_groups // self.settings.global_batch_size)

    @property
    def num_epochs(self) -> int:
        """Epochs that the run begins; the last may be cut short."""
        return -(-self.num_episodes // self.num_groups)

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        epochs, rest = divmod(self.num_episodes, self.num_groups)
        return epochs * self.per_epoch + -(-rest // self.settings.global_batch_size)

    def episodes_before(self, step: int) -> int:
        """Return the number of groups in all steps before this one."""
        epoch, within = divmod(step, self.per_epoch)
        episodes = epoch * self.num_groups + within * self.settings.global_batch_size
        return min(episodes, self.num_episodes)

    def size(self, step: int) -> int:
        """Return the number of groups in a step (counted from 0)."""
        return self.episodes_before(step + 1) - self.episodes_before(step)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a run over N groups of the given lengths."""

    lengths: GroupLengths
    settings: PlanSettings

    @property
    def steps(self) -> Steps:
        """Number and sizes of the steps."""
        return Steps(num_groups=len(self.lengths), settings=self.settings)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch: ``[N]``, each index once."""
        if not self.settings.shuffle:
            return np.arange(len(self.lengths))
        return epoch_order(len(self.lengths), self.settings.seed, epoch)

    def groups_of_step(self, step: int) -> np.ndarray:
        """Return the groups of a step (counted from 0): ``[B]`` indices, B the true batch size."""
        epoch, within = divmod(step, self.steps.per_epoch)
        first = within * self.settings.global_batch_size
        return self.order(epoch)[first : first + self.steps.size(step)]

    def micro_batches(self, step: int, *, rank: int, world_size: int) -> list[MicroBatch]:
        """Return a rank's micro-batches of a step; every rank has the same number."""
        groups = self.groups_of_step(step)
        mine = self.spread(groups, world_size)[rank]
        return [
            MicroBatch(
                step=step,
                position=position,
                num_micro_batches=len(mine),
                rank=rank,
                groups=groups[members],
                weights=np.full(len(members), weight, dtype=np.float32),
            )
            for position, (members, weight) in enumerate(mine)
        ]

    def spread(self, groups: np.ndarray, world_size: int) -> Spread:
        """Spread a step's groups over all ranks; the indices are positions in ``groups``."""
        lengths, settings = self.lengths[groups], self.settings
        limits = {
            "world_size": world_size,
            "tokens_per_micro_batch": settings.tokens_per_micro_batch,
        }
        if settings.layout == "padded":
            return spread_padded(lengths.longest, lengths.num_responses, **limits)
        costs = lengths.distinct + settings.attention_weight * lengths.attended
        return spread_packed(lengths.distinct, costs, **limits)

    def fingerprint(self) -> str:
        """Hash everything that determines the groups of each step; a resumed run compares it."""
        digest = hashlib.sha256()
        lengths = self.lengths
        for column in (lengths.num_responses, lengths.conversations, lengths.prefix):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update(self.order(0).tobytes())
        digest.update(str(self.settings.global_batch_size).encode())
        return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def epoch_order(num_groups: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch: ``[N]``, each index once."""
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = rng.permutation(num_groups)
    order.setflags(write=False)  # cached and shared
    return order
