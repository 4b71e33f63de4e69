from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import Collator
from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.packing import PackedPairs, pack_pairs
from rm_ray.batches.padding import PaddedPairs, pad_pairs
from rm_ray.batches.plan import MicroBatch
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.pair_tokens import join_pairs

PAD = 99
LAYOUTS: list[tuple[Layout, Kernel]] = [
    ("packed", "varlen"),
    ("packed", "grouped"),
    ("padded", "grouped"),
]


def micro_batch(*weights: float, position: int = 0) -> LoadedMicroBatch:
    """Load one pair per weight, of 3 and 4 tokens, 2 of them shared."""
    num_pairs = len(weights)
    return LoadedMicroBatch(
        plan=MicroBatch(
            step=0,
            position=position,
            num_micro_batches=2,
            rank=0,
            pairs=np.arange(num_pairs),
            weights=np.array(weights, dtype=np.float32),
        ),
        pairs=join_pairs([([1, 2, 10 + i], [1, 2, 20 + i, 30 + i]) for i in range(num_pairs)]),
        margins=np.linspace(0.0, 1.0, num_pairs),
        prompt_lengths=np.full(num_pairs, 2),
    )


def collator(layout: Layout, kernel: Kernel = "grouped", device: str = "cpu") -> Collator:
    return Collator(layout=layout, kernel=kernel, pad_token_id=PAD, device=torch.device(device))


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Return all leaves of dataclasses and tuples, by path."""
    if is_dataclass(value):
        items = {f"{name}.{f.name}": getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, tuple):
        items = {f"{name}[{i}]": item for i, item in enumerate(value)}
    else:
        return {name: value}
    return {path: leaf for key, item in items.items() for path, leaf in leaves(item, key).items()}


def assert_equal(got: PaddedPairs | PackedPairs, expected: PaddedPairs | PackedPairs) -> None:
    assert type(got) is type(expected)
    found, wanted = leaves(got), leaves(expected)
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        if isinstance(leaf, Tensor):
            assert found[path].dtype == leaf.dtype, path
            assert found[path].tolist() == leaf.tolist(), path
        else:
            assert found[path] == leaf, path


@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_a_step_is_laid_out_micro_batch_by_micro_batch(layout: Layout, kernel: Kernel):
    step = [micro_batch(1.0, 1.0, 0.0), micro_batch(1.0, position=1)]

    ready = collator(layout, kernel).lay_out(iter(step))

    assert [item.loaded for item in ready] == step
    for item in ready:
        weighting = {"margins": item.loaded.margins, "weights": item.loaded.plan.weights}
        if layout == "packed":
            expected = pack_pairs(item.loaded.pairs, kernel=kernel, **weighting)
            assert_equal(item.pairs, expected)
        else:
            assert_equal(item.pairs, pad_pairs(item.loaded.pairs, pad_token_id=PAD, **weighting))
    assert ready[0].pairs.weights.tolist() == [1.0, 1.0, 0.0]
    assert ready[0].pairs.margins.tolist() == [0.0, 0.5, 1.0]


def test_token_counts_of_packed_and_padded_micro_batches():
    step = [micro_batch(1.0, 1.0)]

    (packed,), (padded,) = (collator(layout).lay_out(step) for layout in ("packed", "padded"))

    assert packed.tokens == (14, 10, 10)  # 2 x (3 + 4), of which 2 are shared in each
    assert padded.tokens == (14, 10, 16)  # 4 rows of 4


def test_filler_pairs_are_computed_but_not_counted():
    step = [micro_batch(1.0, 0.0), micro_batch(0.0)]

    packed, padded = (collator(layout).lay_out(step) for layout in ("packed", "padded"))

    assert [ready.tokens for ready in packed] == [(7, 5, 10), (0, 0, 5)]
    assert [ready.tokens for ready in padded] == [(7, 5, 16), (0, 0, 8)]
    assert packed[0].tokens.both == 7
    assert packed[0].tokens.distinct == 5
    assert packed[0].tokens.computed == 10


def test_token_counts_skip_pairs_of_weight_zero():
    loaded = replace(
        micro_batch(0.0, 1.0, 1.0),
        pairs=join_pairs([([1, 2, 3, 4], [1, 5]), ([6], [7, 8]), ([1, 1, 2], [1, 1, 3])]),
    )

    (packed,) = collator("packed").lay_out([loaded])

    assert packed.tokens == (3 + 6, 3 + 4, 5 + 3 + 4)


@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_moving_keeps_every_value(layout: Layout, kernel: Kernel):
    collate = collator(layout, kernel)
    ready = collate.lay_out([micro_batch(1.0, 0.0), micro_batch(1.0, position=1)])

    moved = collate.move(iter(ready))

    assert [item.loaded for item in moved] == [item.loaded for item in ready]
    assert [item.tokens for item in moved] == [item.tokens for item in ready]
    for after, before in zip(moved, ready, strict=True):
        assert_equal(after.pairs, before.pairs)


@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_moving_moves_every_tensor(layout: Layout, kernel: Kernel):
    ready = collator(layout, kernel).lay_out([micro_batch(1.0, 0.0)])

    (moved,) = collator(layout, kernel, device="meta").move(ready)

    before, after = leaves(ready[0].pairs), leaves(moved.pairs)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        if isinstance(leaf, Tensor):
            assert after[path].device.type == "meta", path
            assert after[path].shape == leaf.shape, path
            assert leaf.device.type == "cpu", path
        else:
            assert after[path] == leaf, path


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU copies from pinned memory")
@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_a_gpu_gets_the_values_of_pinned_tensors(layout: Layout, kernel: Kernel):
    collate = collator(layout, kernel, device="cuda")
    plain = collator(layout, kernel).lay_out([micro_batch(1.0, 0.0)])

    ready = collate.lay_out([micro_batch(1.0, 0.0)])
    tensors = [leaf for leaf in leaves(ready[0].pairs).values() if isinstance(leaf, Tensor)]
    assert all(tensor.is_pinned() for tensor in tensors)

    (moved,) = collate.move(ready)
    assert moved.pairs.input_ids.device.type == "cuda"
    assert_equal(moved.pairs, plain[0].pairs)
