"""Keys and values of earlier forward passes, for groups whose first tokens are not computed again.

A token's key and value in a causal decoder depend on the tokens before it alone (the KV cache of
generation). Where those came before, a pass computes only what follows, and attention sees the
earlier keys of each group in front of its new ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class KeyValuePool:
    """Room for the keys and values of so many tokens in every layer, numbered as slots.

    A layer's tensors, ``[slots, H', D]`` for H' key-value heads of size D, are made when the layer
    first runs, in the dtypes and on the device it computes with.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of_layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values; ``key`` and ``value`` are ``[T, H', D]`` like them."""
        if layer not in self._layers:
            self._layers[layer] = (
                key.new_empty(self.num_slots, *key.shape[1:]),
                value.new_empty(self.num_slots, *value.shape[1:]),
            )
        return self._layers[layer]


@dataclass(frozen=True, kw_only=True)
class CachedPrefixes:
    """Which tokens of G groups are computed, and where the pool has the others.

    The groups have T + C tokens, of which T are computed. ``lengths`` ``[G]`` are the tokens at the
    start of each group that are not. ``computed`` ``[T]`` and ``cached`` ``[C]`` int64 are places
    among all tokens, and ``cached_slots`` ``[C]`` slots of the pool. Of the computed tokens, those
    numbered ``kept`` ``[K]`` are kept in ``kept_slots`` ``[K]``.
    """

    pool: KeyValuePool
    lengths: np.ndarray
    computed: Tensor
    cached: Tensor
    cached_slots: Tensor
    kept: Tensor
    kept_slots: Tensor

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all tokens, ``[T + C, H', D]``, from those computed.

        ``key`` and ``value`` are ``[T, H', D]``, rotated; some are kept for later passes.
        """
        both = zip(self.pool.of_layer(layer, key, value), (key, value), strict=True)
        key, value = (self._extend(pool, computed) for pool, computed in both)
        return key, value

    def _extend(self, pool: Tensor, computed: Tensor) -> Tensor:
        if len(self.kept):
            is_all = len(self.kept) == len(computed)
            kept = computed if is_all else computed.index_select(0, self.kept)
            pool.index_copy_(0, self.kept_slots, kept)
        return self._join(pool, computed) if len(self.cached) else computed

    def _join(self, pool: Tensor, computed: Tensor) -> Tensor:
        joined = torch.empty(
            (len(self.computed) + len(self.cached), *computed.shape[1:]),
            dtype=computed.dtype,
            device=computed.device,
        )
        joined.index_copy_(0, self.computed, computed)
        return joined.index_copy_(0, self.cached, pool.index_select(0, self.cached_slots))
