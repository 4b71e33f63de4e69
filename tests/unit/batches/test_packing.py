from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_shapes import KERNELS, Shape, of_shapes, pack, shapes_of_pairs
from torch import Tensor

from rm_ray.batches.attention_index import GroupedQueries, Kernel, VarlenQueries
from rm_ray.batches.packing import PackedPairs, pack_pairs
from rm_ray.data.cache.pair_tokens import PairLengths, PairTokens


def grouped(packed: PackedPairs) -> list[GroupedQueries]:
    both = [packed.everywhere, packed.at_ends]
    return [queries for queries in both if isinstance(queries, GroupedQueries)]


def test_two_pairs_become_one_row_as_in_a_worked_example():
    pairs = PairTokens(
        tokens=np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=np.int32),
        # 1 2 shared, then 3 or 4 5 6; nothing shared, 7 8 or 9
        lengths=PairLengths(
            chosen=np.array([3, 2]), rejected=np.array([5, 1]), prefix=np.array([2, 0])
        ),
    )

    packed = pack_pairs(
        pairs, margins=np.array([0.5, 0.0]), weights=np.array([1.0, 0.0]), kernel="varlen"
    )

    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3, 4, 0, 1, 0]]
    assert packed.last_positions.tolist() == [2, 5, 7, 8]
    assert packed.margins.tolist() == [0.5, 0.0]
    assert packed.weights.tolist() == [1.0, 0.0]
    everywhere, at_ends = packed.everywhere, packed.at_ends
    assert isinstance(everywhere, VarlenQueries)
    assert isinstance(at_ends, VarlenQueries)
    for queries in (everywhere, at_ends):
        assert queries.key_positions.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 8]
        assert queries.key_starts.tolist() == [0, 3, 8, 10, 11]
        assert queries.max_keys == 5
    assert everywhere.query_starts.tolist() == [0, 3, 6, 8, 9]
    assert everywhere.max_queries == 3
    assert at_ends.query_starts.tolist() == [0, 1, 2, 3, 4]
    assert at_ends.max_queries == 1


@given(shapes_of_pairs, st.sampled_from(KERNELS))
def test_the_row_holds_each_distinct_token_once_with_positions_as_if_alone(
    shapes: list[Shape], kernel: Kernel
):
    pairs, packed = of_shapes(shapes), pack(shapes, kernel)

    row, positions = packed.input_ids[0].numpy(), packed.position_ids[0].numpy()
    assert row.tolist() == pairs.tokens.tolist()
    for i, (prefix, chosen, rejected) in enumerate(shapes):
        start = int(pairs.starts[i])
        tail = start + prefix + chosen
        places = np.concatenate(
            [np.arange(start, start + prefix), np.arange(tail, tail + rejected)]
        )
        assert positions[start:tail].tolist() == list(range(prefix + chosen))
        assert positions[places].tolist() == list(range(prefix + rejected))
        assert row[start:tail].tolist() == pairs.chosen(i).tolist()
        assert row[places].tolist() == pairs.rejected(i).tolist()
        assert row[packed.last_positions[2 * i]] == pairs.chosen(i)[-1]
        assert row[packed.last_positions[2 * i + 1]] == pairs.rejected(i)[-1]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("given_type", [np.float64, np.float32, np.int64])
def test_numbers_have_the_types_that_the_model_and_the_loss_expect(
    kernel: Kernel, given_type: type
):
    packed = pack_pairs(
        of_shapes([(1, 2, 1)]),
        margins=np.array([2], dtype=given_type),
        weights=np.array([1], dtype=given_type),
        kernel=kernel,
    )

    tensors = {
        f.name: getattr(packed, f.name)
        for f in fields(packed)
        if isinstance(getattr(packed, f.name), Tensor)
    }
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "input_ids": (torch.int64, (1, 4)),
        "position_ids": (torch.int64, (1, 4)),
        "last_positions": (torch.int64, (2,)),
        "margins": (torch.float32, (1,)),
        "weights": (torch.float32, (1,)),
    }
    for queries in grouped(packed):
        assert queries.query_order.dtype == queries.key_positions.dtype == torch.int64
        assert queries.outputs.dtype == torch.int64
        assert {group.query_ranks.dtype for group in queries.groups} == {torch.int64}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_shares_no_memory_with_its_pairs(kernel: Kernel):
    pairs = of_shapes([(1, 2, 1)])
    margins, weights = np.zeros(1, np.float32), np.ones(1, np.float32)
    packed = pack_pairs(pairs, margins=margins, weights=weights, kernel=kernel)

    margins[0], weights[0], pairs.tokens[0], pairs.lengths.prefix[0] = 5, 5, 5, 5

    assert packed.margins.tolist() == [0.0]
    assert packed.weights.tolist() == [1.0]
    assert packed.input_ids.tolist() == [[100, 101, 102, 103]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 1]]
