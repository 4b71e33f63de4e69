"""The pairs of a step -> evenly loaded micro-batches on every rank, as few as the budget allows.

Both spread functions return each rank's micro-batches as ``(pair indices, weight)``; the weight is
1.0, or 0.0 for a filler that repeats a pair because there are too few micro-batches for all ranks.
All ranks have the same number of micro-batches, and those at one position cost nearly the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

import numpy as np

Spread = list[list[tuple[np.ndarray, float]]]


def spread_packed(
    tokens: np.ndarray, costs: np.ndarray, *, world_size: int, tokens_per_micro_batch: int
) -> Spread:
    """Spread packed pairs: a micro-batch holds the sum of its pairs' ``tokens``.

    ``costs`` is the work of each pair, in any unit; the ranks' work is balanced by it. A pair
    over the budget gets a micro-batch of its own.
    """
    by_volume = -(-int(np.minimum(tokens, tokens_per_micro_batch).sum()) // tokens_per_micro_batch)
    no_two_fit = int((2 * tokens > tokens_per_micro_batch).sum())
    num_groups = -(-max(by_volume, no_two_fit) // world_size) * world_size
    filler = int(np.argmin(tokens))
    while True:
        for groups in _groupings(tokens, costs, num_groups, tokens_per_micro_batch):
            if len(groups) <= num_groups and all(
                len(group) < 2 or tokens[group].sum() <= tokens_per_micro_batch for group in groups
            ):
                return _deal(groups, lambda group: float(costs[group].sum()), world_size, filler)
        num_groups += world_size


def _groupings(
    tokens: np.ndarray, costs: np.ndarray, num_groups: int, limit: int
) -> Iterator[list[np.ndarray]]:
    """Yield groupings to try, from the most balanced to the most likely to fit."""
    yield _lightest_first(costs, num_groups)
    yield _lightest_first(tokens, num_groups)
    yield _first_fit(tokens, limit)


def _lightest_first(loads: np.ndarray, num_groups: int) -> list[np.ndarray]:
    """Put each pair, heaviest first, into the lightest group (Graham, 1969)."""
    members: list[list[int]] = [[] for _ in range(min(num_groups, len(loads)))]
    heap = [(0.0, group) for group in range(len(members))]
    values = loads.tolist()
    for pair in np.argsort(-loads, kind="stable").tolist():
        load, group = heap[0]
        members[group].append(pair)
        heapq.heapreplace(heap, (load + values[pair], group))
    return [np.array(group) for group in members]


def _first_fit(tokens: np.ndarray, limit: int) -> list[np.ndarray]:
    """Put each pair, largest first, into the first group with room (Johnson, 1973)."""
    members: list[list[int]] = []
    room: list[int] = []
    values = tokens.tolist()
    for pair in np.argsort(-tokens, kind="stable").tolist():
        size = values[pair]
        group = next((i for i, left in enumerate(room) if left >= size), len(room))
        if group == len(room):
            members.append([])
            room.append(limit)
        members[group].append(pair)
        room[group] -= size
    return [np.array(group) for group in members]


def spread_padded(lengths: np.ndarray, *, world_size: int, tokens_per_micro_batch: int) -> Spread:
    """Spread right-padded pairs: P of them cost ``2 P max(length)`` tokens.

    ``lengths`` holds the length of each pair's longer conversation. A pair over the budget gets a
    micro-batch of its own.
    """

    def cost(group: np.ndarray) -> float:
        return 2.0 * len(group) * int(lengths[group].max())

    order = np.argsort(-lengths, kind="stable")
    longest_first = lengths[order]
    fewest = len(_cuts(longest_first, tokens_per_micro_batch))
    num_groups = -(-fewest // world_size) * world_size
    starts = _cuts(
        longest_first, _smallest_limit(longest_first, num_groups, tokens_per_micro_batch)
    )
    groups = np.split(order, starts[1:])
    while len(groups) < num_groups:
        costs = [cost(group) if len(group) > 1 else 0.0 for group in groups]
        largest = int(np.argmax(costs))
        if not costs[largest]:
            break
        groups[largest : largest + 1] = np.array_split(groups[largest], 2)
    return _deal(groups, cost, world_size, int(order[-1]))


def _cuts(longest_first: np.ndarray, limit: int) -> list[int]:
    """Return the start of each group when groups are filled up to the limit, longest first."""
    starts = []
    start = 0
    while start < len(longest_first):
        starts.append(start)
        start += max(1, limit // (2 * int(longest_first[start])))
    return starts


def _smallest_limit(longest_first: np.ndarray, num_groups: int, limit: int) -> int:
    """Return the smallest limit that needs at most ``num_groups`` groups."""
    low, high = 1, limit
    while low < high:
        middle = (low + high) // 2
        if len(_cuts(longest_first, middle)) <= num_groups:
            high = middle
        else:
            low = middle + 1
    return low


def _deal(
    groups: list[np.ndarray], cost: Callable[[np.ndarray], float], world_size: int, filler: int
) -> Spread:
    """Deal groups to ranks, similar costs at one position; fill gaps with a repeated pair."""
    weighted = [(group, 1.0) for group in sorted(groups, key=cost, reverse=True)]
    weighted += [(np.array([filler]), 0.0)] * (-len(groups) % world_size)
    ranks: Spread = [[] for _ in range(world_size)]
    for i, item in enumerate(weighted):
        position, rank = divmod(i, world_size)
        ranks[rank if position % 2 == 0 else world_size - 1 - rank].append(item)
    return ranks
