import numpy as np
import torch

from rm_ray.batches.cached_prefixes import CachedPrefixes, KeyValuePool


def rows(*numbers: int) -> torch.Tensor:
    """Keys of one head of size 2, recognizable by their numbers."""
    return torch.tensor([[[number, -number]] for number in numbers], dtype=torch.float32)


def prefixes(
    pool: KeyValuePool, *, cached: dict[int, int], computed: list[int], kept: dict[int, int]
):
    """Where tokens are cached, by their places; which are computed, and where those are kept."""
    return CachedPrefixes(
        pool=pool,
        lengths=np.array([len(cached)]),
        computed=torch.tensor(computed),
        cached=torch.tensor([*cached], dtype=torch.int64),
        cached_slots=torch.tensor([*cached.values()], dtype=torch.int64),
        kept=torch.tensor([*kept], dtype=torch.int64),
        kept_slots=torch.tensor([*kept.values()], dtype=torch.int64),
    )


def test_later_passes_find_what_an_earlier_one_kept_in_every_layer():
    pool = KeyValuePool(5)
    first = prefixes(pool, cached={}, computed=[0, 1, 2], kept={0: 4, 1: 0, 2: 2})
    for layer in (0, 1):
        key, value = rows(10 + layer, 20, 30), rows(1, 2, 3)
        assert all(
            a is b for a, b in zip(first.extend(layer, key, value), (key, value), strict=True)
        )
    second = prefixes(pool, cached={0: 4, 1: 0}, computed=[2, 3], kept={1: 1})
    for layer in (0, 1):
        key, value = second.extend(layer, rows(50, 60), rows(5, 6))
        assert torch.equal(key, rows(10 + layer, 20, 50, 60))
        assert torch.equal(value, rows(1, 2, 5, 6))
    third = prefixes(pool, cached={0: 4, 1: 0, 2: 1}, computed=[3], kept={})
    for layer in (0, 1):
        key, _ = third.extend(layer, rows(70), rows(7))
        assert torch.equal(key, rows(10 + layer, 20, 60, 70))


def test_a_layer_keeps_its_own_dtypes():
    pool = KeyValuePool(3)
    first = prefixes(pool, cached={}, computed=[0], kept={0: 1})
    first.extend(0, rows(1), rows(2).bfloat16())
    assert [kept.dtype for kept in pool.of_layer(0, rows(1), rows(1))] == [
        torch.float32,
        torch.bfloat16,
    ]
