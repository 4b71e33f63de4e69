"""Which pair is trained on in which step, on which rank and in which micro-batch.

The pairs of a step depend on (seed, epoch, global_batch_size, data) and never on the number of
workers; only their spread over ranks and micro-batches does.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The pairs of one forward pass on one rank.

    ``pairs`` are ``[P]`` indices, ``weights`` ``[P]`` is 1.0 for a pair that counts and 0.0 for
    one that only keeps a rank without pairs in step with the others.
    """

    step: int
    position: int
    num_micro_batches: int
    rank: int
    pairs: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What decides a plan beside the pairs themselves."""

    global_batch_size: int
    tokens_per_micro_batch: int
    seed: int = 0
    epochs: int = 1
    max_episodes: int | None = None
    shuffle: bool = True


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How many steps a run over ``num_pairs`` pairs has, and how many pairs each holds."""

    num_pairs: int
    settings: PlanSettings

    @property
    def num_episodes(self) -> int:
        """Pairs trained on in the whole run, each counted once an epoch."""
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
        """Return how many pairs the steps before this one hold."""
        epoch, within = divmod(step, self.per_epoch)
        episodes = epoch * self.num_pairs + within * self.settings.global_batch_size
        return min(episodes, self.num_episodes)

    def size(self, step: int) -> int:
        """Return how many pairs a step (counted from 0) holds."""
        return self.episodes_before(step + 1) - self.episodes_before(step)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a run over N pairs; ``lengths`` ``[N]`` is each pair's longer conversation."""

    lengths: np.ndarray
    settings: PlanSettings

    @property
    def steps(self) -> Steps:
        """The number and sizes of the steps."""
        return Steps(num_pairs=len(self.lengths), settings=self.settings)

    def order(self, epoch: int) -> np.ndarray:
        """Return the pairs of an epoch in order: ``[N]``, each index once."""
        if not self.settings.shuffle:
            return np.arange(len(self.lengths))
        return epoch_order(len(self.lengths), self.settings.seed, epoch)

    def pairs_of_step(self, step: int) -> np.ndarray:
        """Return the pairs of a step (counted from 0): ``[B]`` indices, B the true batch size."""
        epoch, within = divmod(step, self.steps.per_epoch)
        first = within * self.settings.global_batch_size
        return self.order(epoch)[first : first + self.steps.size(step)]

    def micro_batches(self, step: int, *, rank: int, world_size: int) -> list[MicroBatch]:
        """Return what a rank computes in a step; every rank has equally many micro-batches."""
        pairs = self.pairs_of_step(step)
        mine = spread(self.lengths[pairs], world_size, self.settings.tokens_per_micro_batch)[rank]
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

    def fingerprint(self) -> str:
        """Hash what decides the pairs of every step, so that a resumed run can compare."""
        digest = hashlib.sha256(np.ascontiguousarray(self.lengths).tobytes())
        digest.update(self.order(0).tobytes())
        digest.update(str(self.settings.global_batch_size).encode())
        return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def epoch_order(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch: ``[N]``, each index once."""
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = rng.permutation(num_pairs)
    order.setflags(write=False)  # it is kept and shared
    return order


def spread(
    lengths: np.ndarray, world_size: int, tokens_per_micro_batch: int
) -> list[list[tuple[np.ndarray, float]]]:
    """Spread the pairs of a step over ranks and micro-batches of right-padded conversations.

    A micro-batch of P pairs costs ``2 P max(length)`` tokens. The fewest micro-batches are used
    that keep every cost within ``tokens_per_micro_batch`` (a pair that is larger stands alone);
    then the costs are evened out, over ranks at every position first.

    Returns, for each rank, its micro-batches as ``(indices into lengths, weight)``; the weight is
    1.0, or 0.0 for one that repeats a pair because there are fewer pairs than ranks.
    """
    order = np.argsort(-lengths, kind="stable")
    longest_first = lengths[order]
    fewest = len(_cuts(longest_first, tokens_per_micro_batch))
    num_groups = -(-fewest // world_size) * world_size
    starts = _cuts(
        longest_first, _smallest_limit(longest_first, num_groups, tokens_per_micro_batch)
    )
    groups = np.split(order, starts[1:])
    while len(groups) < num_groups:
        costs = [_cost(lengths, group) if len(group) > 1 else 0 for group in groups]
        largest = int(np.argmax(costs))
        if not costs[largest]:
            break
        groups[largest : largest + 1] = np.array_split(groups[largest], 2)
    weighted = [(group, 1.0) for group in groups]
    weighted += [(order[-1:], 0.0)] * (num_groups - len(groups))
    weighted.sort(key=lambda item: -_cost(lengths, item[0]))
    ranks: list[list[tuple[np.ndarray, float]]] = [[] for _ in range(world_size)]
    for i, item in enumerate(weighted):
        position, rank = divmod(i, world_size)
        ranks[rank if position % 2 == 0 else world_size - 1 - rank].append(item)
    return ranks


def _cost(lengths: np.ndarray, group: np.ndarray) -> int:
    return 2 * len(group) * int(lengths[group].max())


def _cuts(longest_first: np.ndarray, limit: int) -> list[int]:
    """Return where the groups begin when each is filled up to the limit, largest pairs first."""
    starts = []
    start = 0
    while start < len(longest_first):
        starts.append(start)
        start += max(1, limit // (2 * int(longest_first[start])))
    return starts


def _smallest_limit(longest_first: np.ndarray, num_groups: int, limit: int) -> int:
    """Return the smallest limit under which there are no more than ``num_groups`` groups."""
    low, high = 1, limit
    while low < high:
        middle = (low + high) // 2
        if len(_cuts(longest_first, middle)) <= num_groups:
            high = middle
        else:
            low = middle + 1
    return low
