"""The training plan: each pair's step, rank and micro-batch.

The pairs of a step depend on (seed, epoch, global_batch_size, data) but never on the number of
workers, which only changes how a step is spread over ranks and micro-batches.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from rm_ray.batches.spread import Spread, spread_packed, spread_padded
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.pair_tokens import PairLengths


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The pairs of one forward pass on one rank.

    ``pairs`` ``[P]`` are indices; ``weights`` ``[P]`` are 1.0 for a pair that counts, and 0.0 for
    a filler that keeps a rank without pairs in step with the others.
    """

    step: int
    position: int
    num_micro_batches: int
    rank: int
    pairs: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The settings that, with the pairs' lengths, determine a plan."""

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
    """The number of steps in a run over ``num_pairs`` pairs, and the pairs in each."""

    num_pairs: int
    settings: PlanSettings

    @property
    def num_episodes(self) -> int:
        """Pairs trained on in the whole run; a pair counts once per epoch."""
        whole = self.num_pairs * self.settings.epochs
        limit = self.settings.max_episodes
        return whole if limit is None else min(whole, limit)

    @property
    def per_epoch(self) -> int:
        """Steps of a whole epoch; the last may hold fewer pairs."""
        return -(-self.num_pairs // self.settings.global_batch_size)

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        epochs, rest = divmod(self.num_episodes, self.num_pairs)
        return epochs * self.per_epoch + -(-rest // self.settings.global_batch_size)

    def episodes_before(self, step: int) -> int:
        """Return the number of pairs in all steps before this one."""
        epoch, within = divmod(step, self.per_epoch)
        episodes = epoch * self.num_pairs + within * self.settings.global_batch_size
        return min(episodes, self.num_episodes)

    def size(self, step: int) -> int:
        """Return the number of pairs in a step (counted from 0)."""
        return self.episodes_before(step + 1) - self.episodes_before(step)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a run over N pairs of the given lengths."""

    lengths: PairLengths
    settings: PlanSettings

    @property
    def steps(self) -> Steps:
        """Number and sizes of the steps."""
        return Steps(num_pairs=len(self.lengths), settings=self.settings)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch: ``[N]``, each index once."""
        if not self.settings.shuffle:
            return np.arange(len(self.lengths))
        return epoch_order(len(self.lengths), self.settings.seed, epoch)

    def pairs_of_step(self, step: int) -> np.ndarray:
        """Return the pairs of a step (counted from 0): ``[B]`` indices, B the true batch size."""
        epoch, within = divmod(step, self.steps.per_epoch)
        first = within * self.settings.global_batch_size
        return self.order(epoch)[first : first + self.steps.size(step)]

    def micro_batches(self, step: int, *, rank: int, world_size: int) -> list[MicroBatch]:
        """Return a rank's micro-batches of a step; every rank has the same number."""
        pairs = self.pairs_of_step(step)
        mine = self.spread(pairs, world_size)[rank]
        return [
            MicroBatch(
                step=step,
                position=position,
                num_micro_batches=len(mine),
                rank=rank,
                pairs=pairs[members],
                weights=np.full(len(members), weight, dtype=np.float32),
            )
            for position, (members, weight) in enumerate(mine)
        ]

    def spread(self, pairs: np.ndarray, world_size: int) -> Spread:
        """Spread a step's pairs over all ranks; the indices are positions in ``pairs``."""
        lengths, settings = self.lengths[pairs], self.settings
        limits = {
            "world_size": world_size,
            "tokens_per_micro_batch": settings.tokens_per_micro_batch,
        }
        if settings.layout == "padded":
            return spread_padded(lengths.longest, **limits)
        costs = lengths.distinct + settings.attention_weight * lengths.attended
        return spread_packed(lengths.distinct, costs, **limits)

    def fingerprint(self) -> str:
        """Hash everything that determines the pairs of each step; a resumed run compares it."""
        digest = hashlib.sha256()
        for lengths in (self.lengths.chosen, self.lengths.rejected, self.lengths.prefix):
            digest.update(np.ascontiguousarray(lengths).tobytes())
        digest.update(self.order(0).tobytes())
        digest.update(str(self.settings.global_batch_size).encode())
        return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def epoch_order(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch: ``[N]``, each index once."""
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = rng.permutation(num_pairs)
    order.setflags(write=False)  # cached and shared
    return order
