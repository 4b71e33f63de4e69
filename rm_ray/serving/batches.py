"""Which pending conversations are computed next, and which of them over one prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from rm_ray.data.cache.group_tokens import shared_prefix_of_arrays
from rm_ray.scoring.prefix_cache import CACHED_PER_COMPUTED, cost_of_cached

MOST_SEARCHED = 512
"""How many of the oldest pending conversations are searched for shared prefixes."""


def next_batch(
    pending: Sequence[np.ndarray],
    tokens_per_forward: int,
    num_cached: Callable[[np.ndarray], int],
) -> list[list[int]]:
    """Choose the conversations of the next forward pass from those pending, oldest first.

    Return their indices, grouped by shared prefix. Groups are taken in the order of their oldest
    conversations, each with as many of its conversations as fit, so the oldest one is always in:
    nobody waits for ever. A pass has at most ``tokens_per_forward`` distinct tokens, unless the
    oldest conversation alone has more. Those at the start of a conversation that need not be
    computed, by ``num_cached``, count in part (``cost_of_cached``).
    """
    batch: list[list[int]] = []
    used = 0
    searched = pending[:MOST_SEARCHED]
    cached = [num_cached(ids) for ids in searched]
    for group in sorted(share_prefixes(searched, cached)):
        prefix = shared_prefix_of_arrays([pending[i] for i in group])
        reused = min(cached[group[0]], prefix)
        reading = cost_of_cached(np.array(reused), np.arange(len(group) + 1)).tolist()
        members: list[int] = []
        for i in group:
            number = len(members)
            cost = len(pending[i]) - (prefix if members else reused)
            cost += reading[number + 1] - reading[number]
            if used + cost <= tokens_per_forward or not used:
                members.append(i)
                used += cost
        if members:
            batch.append(members)
    return batch


def share_prefixes(
    conversations: Sequence[np.ndarray], num_cached: Sequence[int]
) -> list[list[int]]:
    """Divide conversations into groups, each computed over one prefix, to save most tokens.

    A group of n conversations with a common prefix of p tokens saves (n - 1) p, and most of those
    of its prefix that are cached: up to ``num_cached`` of each conversation. In lexicographic order
    the conversations of a prompt are neighbours, and the common prefix of a run is the least that
    two neighbours share; a dynamic program finds the best division into runs. Each group is in
    ascending order.
    """
    # Big-endian bytes sort as the ids do.
    keys = [np.ascontiguousarray(ids, dtype=">i4").tobytes() for ids in conversations]
    order = sorted(range(len(conversations)), key=keys.__getitem__)
    shared = [
        shared_prefix_of_arrays([conversations[i], conversations[j]]) for i, j in pairwise(order)
    ]
    count = len(order)
    whole, by_cached = CACHED_PER_COMPUTED, CACHED_PER_COMPUTED - 1  # a cached token saves less
    saved = np.zeros(count + 1, dtype=np.int64)  # by the best partition of the first ones
    begins = np.zeros(count + 1, dtype=np.int64)  # where its last run begins
    prefixes = np.zeros(count, dtype=np.int64)  # of the runs that begin here and end before `end`
    for end in range(1, count + 1):
        if end > 1:
            prefixes[end - 2] = shared[end - 2]
            np.minimum(prefixes[: end - 2], shared[end - 2], out=prefixes[: end - 2])
        last = order[end - 1]
        prefixes[end - 1] = len(conversations[last]) - 1
        gains = saved[:end] + whole * prefixes[:end] * np.arange(end - 1, -1, -1)
        gains += by_cached * np.minimum(prefixes[:end], num_cached[last])
        begins[end] = end - 1 - int(np.argmax(gains[::-1]))  # of equals, the smallest group
        saved[end] = gains[begins[end]]
    groups = []
    end = count
    while end:
        begin = int(begins[end])
        groups.append(sorted(order[begin:end]))
        end = begin
    return groups
