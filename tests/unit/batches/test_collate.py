from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import Collator, label_groups, unlabelled
from rm_ray.batches.labels import pair_labels
from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.packing import PackedGroups, pack_groups
from rm_ray.batches.padding import PaddedGroups, pad_groups
from rm_ray.batches.plan import MicroBatch
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.group_columns import GroupColumns
from rm_ray.data.cache.group_tokens import GroupTokens, join_groups

PAD = 99
LAYOUTS: list[tuple[Layout, Kernel]] = [
    ("packed", "varlen"),
    ("packed", "grouped"),
    ("padded", "grouped"),
]


def micro_batch(*weights: float, position: int = 0) -> LoadedMicroBatch:
    """Load one pair per weight, of 3 and 4 tokens, 2 of them shared."""
    num_pairs = len(weights)
    pairs = join_groups([([1, 2, 10 + i], [1, 2, 20 + i, 30 + i]) for i in range(num_pairs)])
    columns = GroupColumns.of_pairs(pairs.lengths, np.linspace(0.0, 1.0, num_pairs))
    return load(pairs, columns, *weights, position=position)


def load(
    groups: GroupTokens, columns: GroupColumns, *weights: float, position: int = 0
) -> LoadedMicroBatch:
    return LoadedMicroBatch(
        plan=MicroBatch(
            step=0,
            position=position,
            num_micro_batches=2,
            rank=0,
            groups=np.arange(len(groups)),
            weights=np.array(weights, dtype=np.float32),
        ),
        columns=columns,
        tokens=groups.tokens,
    )


def lists_of_three_sizes() -> LoadedMicroBatch:
    """Load a single response, a ranked list of three with a tie, and a filler, a pair."""
    groups = join_groups([([1, 2],), ([1, 3], [1, 4, 5], [1, 6]), ([7, 8], [9])])
    columns = GroupColumns.of(
        {
            "num_responses": [1, 3, 2],
            "num_comparisons": [0, 2, 1],
            "prefix_length": groups.lengths.prefix,
            "prompt_length": [1, 1, 0],
            "length": groups.lengths.conversations,
            "score": [4.0, np.nan, 2.0, np.nan, np.nan, np.nan],
            "better": [2, 1, 1],
            "worse": [0, 2, 0],
            "weight": [0.25, 0.75, 1.0],
            "margin": [0.5, 0.0, 0.0],
            "probability": [0.875, 0.5, 1.0],
        }
    )
    return load(groups, columns, 1.0, 1.0, 0.0)


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


def assert_equal(got: PaddedGroups | PackedGroups, expected: PaddedGroups | PackedGroups) -> None:
    assert type(got) is type(expected)
    found, wanted = leaves(got), leaves(expected)
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        if isinstance(leaf, Tensor):
            assert found[path].dtype == leaf.dtype, path
            torch.testing.assert_close(found[path], leaf, rtol=0, atol=0, equal_nan=True)
        else:
            assert found[path] == leaf, path


@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_a_step_is_laid_out_micro_batch_by_micro_batch(layout: Layout, kernel: Kernel):
    step = [micro_batch(1.0, 1.0, 0.0), micro_batch(1.0, position=1)]

    ready = collator(layout, kernel).lay_out(iter(step))

    assert [item.loaded for item in ready] == step
    for item in ready:
        columns, weights = item.loaded.columns, item.loaded.plan.weights
        labels = pair_labels(torch.tensor(columns.margin), torch.tensor(weights))
        if layout == "packed":
            expected = pack_groups(item.loaded.groups, labels, kernel=kernel)
            assert_equal(item.groups, expected)
        else:
            assert_equal(item.groups, pad_groups(item.loaded.groups, labels, pad_token_id=PAD))
    assert ready[0].groups.labels.group_weights.tolist() == [1.0, 1.0, 0.0]
    assert ready[0].groups.labels.margin.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_the_labels_of_lists_number_responses_over_the_micro_batch(layout: Layout, kernel: Kernel):
    (ready,) = collator(layout, kernel).lay_out([lists_of_three_sizes()])

    labels = ready.groups.labels
    assert labels.better.tolist() == [3, 2, 5]
    assert labels.worse.tolist() == [1, 3, 4]
    assert labels.group.tolist() == [1, 1, 2]
    assert labels.weight.tolist() == [0.25, 0.75, 1.0]
    assert labels.margin.tolist() == [0.5, 0.0, 0.0]
    assert labels.probability.tolist() == [0.875, 0.5, 1.0]
    assert labels.scores.nan_to_num(-1).tolist() == [4.0, -1.0, 2.0, -1.0, -1.0, -1.0]
    assert labels.response_group.tolist() == [0, 1, 1, 1, 2, 2]
    assert labels.group_weights.tolist() == [1.0, 1.0, 0.0]


def test_labels_have_the_types_that_objectives_expect():
    labels = label_groups(lists_of_three_sizes().columns, np.ones(3))

    integers = {"better", "worse", "group", "response_group"}
    for field in fields(labels):
        expected = torch.int64 if field.name in integers else torch.float32
        assert getattr(labels, field.name).dtype == expected, field.name


def test_labels_share_no_memory_with_their_columns():
    loaded = lists_of_three_sizes()
    columns, weights = loaded.columns, loaded.plan.weights
    labels = label_groups(columns, weights)
    before = {name: leaf.clone() for name, leaf in leaves(labels).items()}

    for column in (*vars(columns).values(), weights):
        if isinstance(column, np.ndarray):
            column += 1

    for name, leaf in leaves(labels).items():
        torch.testing.assert_close(leaf, before[name], rtol=0, atol=0, equal_nan=True)


def test_unlabelled_groups_have_no_comparison_no_score_and_no_weight():
    labels = unlabelled(lists_of_three_sizes().groups)

    for name in ("better", "worse", "group", "weight", "margin", "probability"):
        assert getattr(labels, name).tolist() == []
    assert labels.scores.isnan().tolist() == [True] * 6
    assert labels.response_group.tolist() == [0, 1, 1, 1, 2, 2]
    assert labels.group_weights.tolist() == [0.0, 0.0, 0.0]


def test_token_counts_of_packed_and_padded_micro_batches():
    step = [micro_batch(1.0, 1.0)]

    (packed,), (padded,) = (collator(layout).lay_out(step) for layout in ("packed", "padded"))

    assert packed.tokens == (14, 10, 10)  # 2 x (3 + 4), of which 2 are shared in each
    assert padded.tokens == (14, 10, 16)  # 4 rows of 4


def test_token_counts_of_lists_count_a_shared_prefix_once():
    step = [lists_of_three_sizes()]

    (packed,), (padded,) = (collator(layout).lay_out(step) for layout in ("packed", "padded"))

    # Of 2, of 2 + 3 + 2 with 1 shared, and a filler of 2 + 1.
    assert packed.tokens == (2 + 7, 2 + 5, 2 + 5 + 3)
    assert padded.tokens == (2 + 7, 2 + 5, 6 * 3)


def test_filler_pairs_are_computed_but_not_counted():
    step = [micro_batch(1.0, 0.0), micro_batch(0.0)]

    packed, padded = (collator(layout).lay_out(step) for layout in ("packed", "padded"))

    assert [ready.tokens for ready in packed] == [(7, 5, 10), (0, 0, 5)]
    assert [ready.tokens for ready in padded] == [(7, 5, 16), (0, 0, 8)]
    assert packed[0].tokens.all == 7
    assert packed[0].tokens.distinct == 5
    assert packed[0].tokens.computed == 10


def test_token_counts_skip_pairs_of_weight_zero():
    pairs = join_groups([([1, 2, 3, 4], [1, 5]), ([6], [7, 8]), ([1, 1, 2], [1, 1, 3])])
    loaded = load(pairs, GroupColumns.of_pairs(pairs.lengths), 0.0, 1.0, 1.0)

    (packed,) = collator("packed").lay_out([loaded])

    assert packed.tokens == (3 + 6, 3 + 4, 5 + 3 + 4)


@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_moving_keeps_every_value(layout: Layout, kernel: Kernel):
    collate = collator(layout, kernel)
    ready = collate.lay_out([micro_batch(1.0, 0.0), lists_of_three_sizes()])

    moved = collate.move(iter(ready))

    assert [item.loaded for item in moved] == [item.loaded for item in ready]
    assert [item.tokens for item in moved] == [item.tokens for item in ready]
    for after, before in zip(moved, ready, strict=True):
        assert_equal(after.groups, before.groups)


@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_moving_moves_every_tensor(layout: Layout, kernel: Kernel):
    ready = collator(layout, kernel).lay_out([micro_batch(1.0, 0.0)])

    (moved,) = collator(layout, kernel, device="meta").move(ready)

    before, after = leaves(ready[0].groups), leaves(moved.groups)
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
    tensors = [leaf for leaf in leaves(ready[0].groups).values() if isinstance(leaf, Tensor)]
    assert all(tensor.is_pinned() for tensor in tensors)

    (moved,) = collate.move(ready)
    assert moved.groups.input_ids.device.type == "cuda"
    assert_equal(moved.groups, plain[0].groups)
