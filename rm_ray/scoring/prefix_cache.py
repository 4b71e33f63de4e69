"""What a scorer keeps between forward passes: keys and values of the tokens it saw last."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from transformers import PretrainedConfig

from rm_ray.batches.cached_prefixes import CachedPrefixes, KeyValuePool
from rm_ray.data.cache.group_tokens import GroupTokens, ragged_arange
from rm_ray.model.attention import head_size
from rm_ray.scoring.prefix_tree import NO_SLOTS, PrefixTree

CACHED_PER_COMPUTED = 8
"""Cached tokens that count as one computed token in the size of a pass: a response only reads their
keys and values, from a copy of its own with some kernels."""


def cost_of_cached(cached: np.ndarray, num_responses: np.ndarray | int) -> np.ndarray:
    """Return what cached tokens of groups count for in the size of a pass, in computed tokens.

    Each response of a group counts for its part of them, up to what they would cost if computed.
    """
    cost: np.ndarray = np.minimum(cached, num_responses * (cached // CACHED_PER_COMPUTED))
    return cost


def token_bytes(architecture: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    config = architecture.get_text_config()
    heads: int = config.to_dict().get("num_key_value_heads") or config.num_attention_heads
    layers: int = config.num_hidden_layers
    return 2 * layers * heads * head_size(architecture) * dtype.itemsize


class PrefixCache:
    """Keys and values of so many tokens, those of the most recently used sequences."""

    def __init__(self, num_tokens: int) -> None:
        self._tree = PrefixTree(num_tokens)
        self._pool = KeyValuePool(num_tokens)

    def count(self, ids: np.ndarray) -> int:
        """Return how many tokens of a conversation need not be computed; its last one must."""
        return self._tree.count(ids[:-1])

    def begin(self, groups: GroupTokens) -> CachedPrefixes:
        """Begin a pass over groups: find what is known of their prefixes.

        ``end`` follows, whatever comes of the pass. If not all tokens can be kept, shared prefixes
        come before tails. What several groups of a pass have alike, they compute and keep apart;
        afterwards it is kept once.
        """
        tree, lengths = self._tree, groups.lengths
        tree.begin_pass()
        found = [
            tree.take(groups.conversation(group, 0)[:prefix])
            for group, prefix in enumerate(lengths.prefix.tolist())
        ]
        num_cached = np.array([len(slots) for slots in found], dtype=np.int64)
        starts, own = groups.own_starts.copy(), groups.own_lengths.copy()
        cached = ragged_arange(starts[lengths.starts], num_cached)
        starts[lengths.starts] += num_cached
        own[lengths.starts] -= num_cached
        computed = ragged_arange(starts, own)
        in_tail = np.ones(len(groups.tokens), dtype=bool)
        shared = np.where(lengths.num_responses > 1, lengths.prefix, 0)
        in_tail[ragged_arange(groups.own_starts[lengths.starts], shared)] = False
        first_kept = np.argsort(in_tail[computed], kind="stable")
        slots = tree.allocate(len(computed))
        kept = np.sort(first_kept[: len(slots)])
        return CachedPrefixes(
            pool=self._pool,
            lengths=num_cached,
            computed=torch.from_numpy(computed),
            cached=torch.from_numpy(cached),
            cached_slots=torch.from_numpy(np.concatenate([NO_SLOTS, *found])),
            kept=torch.from_numpy(kept),
            kept_slots=torch.from_numpy(slots),
        )

    def end(self, groups: GroupTokens, prefixes: CachedPrefixes, *, keep: bool) -> None:
        """End a pass; ``keep`` what it computed for later ones, which must not read what failed."""
        allocated, used = prefixes.kept_slots.numpy(), NO_SLOTS
        if keep:
            slots = np.full(len(groups.tokens), -1, dtype=np.int64)
            slots[prefixes.cached.numpy()] = prefixes.cached_slots.numpy()
            slots[prefixes.computed.numpy()[prefixes.kept.numpy()]] = allocated
            used = self._insert(groups, slots)
        self._tree.release(np.setdiff1d(allocated, used))

    def _insert(self, groups: GroupTokens, slots: np.ndarray) -> np.ndarray:
        """Keep all conversations up to the first token without a slot; return the slots in use."""
        by_slot, used = replace(groups, tokens=slots), [NO_SLOTS]
        for group in range(len(groups)):
            both = zip(groups.conversations(group), by_slot.conversations(group), strict=True)
            for ids, its_slots in both:
                has_slot = np.append(its_slots >= 0, False)
                length = int(has_slot.argmin())
                used.append(self._tree.insert(ids[:length], its_slots[:length]))
        return np.concatenate(used)
