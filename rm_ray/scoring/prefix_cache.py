"""What a scorer keeps between forward passes: keys and values of the tokens it saw last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from transformers import PretrainedConfig

from rm_ray.batches.cached_prefixes import CachedPrefixes, KeyValuePool
from rm_ray.data.cache.group_tokens import GroupTokens, ragged_arange
from rm_ray.model.attention import head_size
from rm_ray.scoring.prefix_tree import NO_SLOTS, PrefixTree

CACHED_PER_COMPUTED = 8
"""Cached tokens that count as one computed token of a forward pass: their keys are only read."""

Counts = TypeVar("Counts", int, np.ndarray)


def pass_tokens(distinct: Counts, cached: Counts) -> Counts:
    """Return what counts for the size of a pass: tokens computed, and a part of those cached."""
    counted: Counts = distinct - cached + cached // CACHED_PER_COMPUTED
    return counted


def token_bytes(architecture: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    config = architecture.get_text_config()
    heads: int = config.to_dict().get("num_key_value_heads") or config.num_attention_heads
    layers: int = config.num_hidden_layers
    return 2 * layers * heads * head_size(architecture) * dtype.itemsize


class PrefixCache:
    """Keys and values of so many tokens, those of the sequences used last."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._tree = PrefixTree(num_tokens)
        self._pool = KeyValuePool(num_tokens)

    def count(self, ids: np.ndarray) -> int:
        """Return how many tokens of a conversation need not be computed; its last one must."""
        return self._tree.count(ids[:-1])

    @contextmanager
    def using(self, groups: GroupTokens) -> Iterator[CachedPrefixes]:
        """Yield what is known of the groups' prefixes, and keep what the pass inside computes.

        If the pass fails, nothing of it is kept.
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
        kept = tree.allocate(len(computed))
        room = NO_SLOTS if kept is None else kept
        cached_slots = np.concatenate([NO_SLOTS, *found])
        try:
            yield CachedPrefixes(
                pool=self._pool,
                lengths=num_cached,
                computed=torch.from_numpy(computed),
                cached=torch.from_numpy(cached),
                cached_slots=torch.from_numpy(cached_slots),
                kept_slots=torch.from_numpy(room),
            )
        except BaseException:
            tree.release(room)
            raise
        if kept is not None:
            slots = np.empty(len(groups.tokens), dtype=np.int64)
            slots[cached], slots[computed] = cached_slots, kept
            tree.release(np.setdiff1d(kept, self._insert(groups, slots)))

    def _insert(self, groups: GroupTokens, slots: np.ndarray) -> np.ndarray:
        """Keep all conversations, by the slots of the groups' tokens; return those in use."""
        by_slot = replace(groups, tokens=slots)
        return np.concatenate(
            [
                self._tree.insert(ids, its_slots)
                for group in range(len(groups))
                for ids, its_slots in zip(
                    groups.conversations(group), by_slot.conversations(group), strict=True
                )
            ]
        )
