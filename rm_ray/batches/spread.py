"""The groups of a step -> evenly loaded micro-batches on every rank, as few as the budget allows.

Both spread functions return each rank's micro-batches as ``(group indices, weight)``; the weight is
1.0, or 0.0 for a filler that repeats a group because there are too few micro-batches for all ranks.
All ranks have the same number of micro-batches, and those at one position cost nearly the same.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator

import numpy as np

Spread = list[list[tuple[np.ndarray, float]]]


def spread_packed(
    tokens: np.ndarray, costs: np.ndarray, *, world_size: int, tokens_per_micro_batch: int
) -> Spread:
    """Spread packed groups: a micro-batch holds the sum of its groups' ``tokens``.

    ``costs`` is the work of each group, in any unit; the ranks' work is balanced by it. A group
    over the budget gets a micro-batch of its own.
    """
    by_volume = -(-int(np.minimum(tokens, tokens_per_micro_batch).sum()) // tokens_per_micro_batch)
    no_two_fit = int((2 * tokens > tokens_per_micro_batch).sum())
    num_parts = -(-max(by_volume, no_two_fit) // world_size) * world_size
    filler = int(np.argmin(tokens))
    while True:
        for parts in _attempts(tokens, costs, num_parts, tokens_per_micro_batch):
            if len(parts) <= num_parts and all(
                len(part) < 2 or tokens[part].sum() <= tokens_per_micro_batch for part in parts
            ):
                return _deal(parts, lambda part: float(costs[part].sum()), world_size, filler)
        num_parts += world_size


def _attempts(
    tokens: np.ndarray, costs: np.ndarray, num_parts: int, limit: int
) -> Iterator[list[np.ndarray]]:
    """Yield groupings to try, from the most balanced to the most likely to fit."""
    yield _lightest_first(costs, num_parts)
    yield _lightest_first(tokens, num_parts)
    yield _first_fit(tokens, limit)


def _lightest_first(loads: np.ndarray, num_parts: int) -> list[np.ndarray]:
    """Put each group, heaviest first, into the lightest part (Graham, 1969)."""
    members: list[list[int]] = [[] for _ in range(min(num_parts, len(loads)))]
    heap = [(0.0, part) for part in range(len(members))]
    values = loads.tolist()
    for group in np.argsort(-loads, kind="stable").tolist():
        load, part = heap[0]
        members[part].append(group)
        heapq.heapreplace(heap, (load + values[group], part))
    return [np.array(each) for each in members]


def _first_fit(tokens: np.ndarray, limit: int) -> list[np.ndarray]:
    """Put each group, largest first, into the first part with room (Johnson, 1973)."""
    members: list[list[int]] = []
    room: list[int] = []
    values = tokens.tolist()
    for group in np.argsort(-tokens, kind="stable").tolist():
        size = values[group]
        part = next((i for i, left in enumerate(room) if left >= size), len(room))
        if part == len(room):
            members.append([])
            room.append(limit)
        members[part].append(group)
        room[part] -= size
    return [np.array(each) for each in members]


def spread_padded(
    lengths: np.ndarray, num_responses: np.ndarray, *, world_size: int, tokens_per_micro_batch: int
) -> Spread:
    """Spread right-padded groups: those with R responses cost ``R max(length)`` tokens.

    ``lengths`` holds the length of each group's longest conversation. A group over the budget gets
    a micro-batch of its own.
    """

    def cost(part: np.ndarray) -> float:
        return float(num_responses[part].sum()) * int(lengths[part].max())

    order = np.argsort(-lengths, kind="stable")
    cuts = _Cuts(longest_first=lengths[order], rows=num_responses[order])
    fewest = len(cuts.starts(tokens_per_micro_batch))
    num_parts = -(-fewest // world_size) * world_size
    starts = cuts.starts(cuts.smallest_limit(num_parts, tokens_per_micro_batch))
    parts = np.split(order, starts[1:])
    while len(parts) < num_parts:
        costs = [cost(each) if len(each) > 1 else 0.0 for each in parts]
        largest = int(np.argmax(costs))
        if not costs[largest]:
            break
        parts[largest : largest + 1] = np.array_split(parts[largest], 2)
    shortest_first = order[::-1]
    filler = int(shortest_first[np.argmin((num_responses * lengths)[shortest_first])])
    return _deal(parts, cost, world_size, filler)


class _Cuts:
    """Where to divide groups, longest first, so that no part exceeds a limit."""

    def __init__(self, *, longest_first: np.ndarray, rows: np.ndarray) -> None:
        self._longest = longest_first.tolist()
        self._before = [0, *np.cumsum(rows).tolist()]
        """Rows before each group."""

    def starts(self, limit: int) -> list[int]:
        """Return the start of each part when parts are filled up to the limit."""
        starts, start = [], 0
        while start < len(self._longest):
            starts.append(start)
            most = self._before[start] + limit // self._longest[start]
            start = max(start + 1, bisect_right(self._before, most) - 1)
        return starts

    def smallest_limit(self, num_parts: int, limit: int) -> int:
        """Return the smallest limit that needs at most ``num_parts`` parts."""
        low, high = 1, limit
        while low < high:
            middle = (low + high) // 2
            if len(self.starts(middle)) <= num_parts:
                high = middle
            else:
                low = middle + 1
        return low


def _deal(
    parts: list[np.ndarray], cost: Callable[[np.ndarray], float], world_size: int, filler: int
) -> Spread:
    """Deal parts to ranks, similar costs at one position; fill gaps with a repeated group."""
    weighted = [(part, 1.0) for part in sorted(parts, key=cost, reverse=True)]
    weighted += [(np.array([filler]), 0.0)] * (-len(parts) % world_size)
    ranks: Spread = [[] for _ in range(world_size)]
    for i, item in enumerate(weighted):
        position, rank = divmod(i, world_size)
        ranks[rank if position % 2 == 0 else world_size - 1 - rank].append(item)
    return ranks
