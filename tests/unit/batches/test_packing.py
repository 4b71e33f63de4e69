from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_shapes import KERNELS, Shape, of_shapes, pack, shapes_of_groups
from torch import Tensor

from rm_ray.batches.attention_index import GroupedQueries, Kernel, VarlenQueries
from rm_ray.batches.collate import unlabelled
from rm_ray.batches.packing import PackedGroups, pack_groups
from rm_ray.data.cache.group_tokens import GroupLengths, GroupTokens


def grouped(packed: PackedGroups) -> list[GroupedQueries]:
    both = [packed.everywhere, packed.at_ends]
    return [queries for queries in both if isinstance(queries, GroupedQueries)]


def check_starts(packed: PackedGroups, *, keys: list[int], queries: list[int]) -> None:
    """Check where each branch's keys and queries begin, in one variable-length call."""
    everywhere, at_ends = packed.everywhere, packed.at_ends
    assert isinstance(everywhere, VarlenQueries)
    assert isinstance(at_ends, VarlenQueries)
    for each in (everywhere, at_ends):
        assert each.key_starts.tolist() == keys
        assert each.max_keys == max(np.diff(keys))
    assert everywhere.query_starts.tolist() == queries
    assert everywhere.max_queries == max(np.diff(queries))
    assert at_ends.query_starts.tolist() == list(range(len(queries)))
    assert at_ends.max_queries == 1


def test_two_pairs_become_one_row_as_in_a_worked_example():
    pairs = GroupTokens(
        tokens=np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=np.int32),
        # 1 2 shared, then 3 or 4 5 6; nothing shared, 7 8 or 9
        lengths=GroupLengths.of_pairs(
            chosen=np.array([3, 2]), rejected=np.array([5, 1]), prefix=np.array([2, 0])
        ),
    )

    packed = pack_groups(pairs, unlabelled(pairs), kernel="varlen")

    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3, 4, 0, 1, 0]]
    assert packed.last_positions.tolist() == [2, 5, 7, 8]
    check_starts(packed, keys=[0, 3, 8, 10, 11], queries=[0, 3, 6, 8, 9])
    for queries in (packed.everywhere, packed.at_ends):
        assert queries.key_positions.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 8]


def test_groups_of_three_and_of_one_become_one_row_as_in_a_worked_example():
    # 100 101 shared, then 102, 103 104 or 105; then 106 107 alone.
    packed = pack([(2, 1, 2, 1), (1, 1)], "varlen")

    assert packed.input_ids.tolist() == [list(range(100, 108))]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3, 2, 0, 1]]
    assert packed.last_positions.tolist() == [2, 4, 5, 7]
    check_starts(packed, keys=[0, 3, 7, 10, 12], queries=[0, 3, 5, 6, 8])
    for queries in (packed.everywhere, packed.at_ends):
        assert queries.key_positions.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 5, 6, 7]


@given(shapes_of_groups, st.sampled_from(KERNELS))
def test_the_row_holds_each_distinct_token_once_with_positions_as_if_alone(
    shapes: list[Shape], kernel: Kernel
):
    groups, packed = of_shapes(shapes), pack(shapes, kernel)

    row, positions = packed.input_ids[0].numpy(), packed.position_ids[0].numpy()
    assert row.tolist() == groups.tokens.tolist()
    start = response = 0
    for i, (prefix, *tails) in enumerate(shapes):
        end = start + prefix
        for k, tail in enumerate(tails):
            places = np.concatenate([np.arange(start, start + prefix), np.arange(end, end + tail)])
            assert positions[places].tolist() == list(range(prefix + tail))
            assert row[places].tolist() == groups.conversation(i, k).tolist()
            assert packed.last_positions[response] == places[-1]
            end += tail
            response += 1
        start = end
    assert start == len(row)
    assert response == len(packed.last_positions)


@pytest.mark.parametrize("kernel", KERNELS)
def test_indices_have_the_types_that_the_model_expects(kernel: Kernel):
    packed = pack([(1, 2, 1), (0, 1)], kernel)

    tensors = {
        f.name: getattr(packed, f.name)
        for f in fields(packed)
        if isinstance(getattr(packed, f.name), Tensor)
    }
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "input_ids": (torch.int64, (1, 5)),
        "position_ids": (torch.int64, (1, 5)),
        "last_positions": (torch.int64, (3,)),
    }
    for queries in grouped(packed):
        assert queries.query_order.dtype == queries.key_positions.dtype == torch.int64
        assert queries.outputs.dtype == torch.int64
        assert {group.query_ranks.dtype for group in queries.groups} == {torch.int64}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_shares_no_memory_with_its_groups(kernel: Kernel):
    groups = of_shapes([(1, 2, 1)])
    packed = pack_groups(groups, unlabelled(groups), kernel=kernel)

    groups.tokens[0], groups.lengths.prefix[0] = 5, 5
    groups.own_starts[1], groups.own_lengths[1] = 5, 5

    assert packed.input_ids.tolist() == [[100, 101, 102, 103]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 1]]
    assert packed.last_positions.tolist() == [2, 3]


def test_a_row_carries_its_labels():
    groups = of_shapes([(1, 2, 1)])
    labels = unlabelled(groups)

    assert pack_groups(groups, labels, kernel="varlen").labels is labels
