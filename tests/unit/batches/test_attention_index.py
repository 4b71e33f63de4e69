from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_shapes import KERNELS, Shape, pack, shapes_of_groups
from torch import Tensor

from rm_ray.batches import attention_index
from rm_ray.batches.attention_index import (
    BranchGroup,
    GroupedQueries,
    Kernel,
    VarlenQueries,
)
from rm_ray.batches.packing import PackedGroups
from rm_ray.batches.shared_prefix_index import Queries, SharedQueries

small_works = st.sampled_from([1, 600, 6_000, attention_index.SMALL_WORK])

wastes = st.sampled_from([0.0, 0.15, 0.5, 1.0])

masks = st.sampled_from([0, 40, 200, attention_index.MAX_MASK])


def expected_attention(shapes: list[Shape]) -> np.ndarray:
    """Return which tokens each one sees, ``[T, T]``, from its group, part and position.

    Part 0 is the prefix.
    """
    row = [
        (group, part, place + (shape[0] if part else 0))
        for group, shape in enumerate(shapes)
        for part, length in enumerate(shape)
        for place in range(length)
    ]
    return np.array(
        [
            [
                group == of and key_part in (0, part) and before <= position
                for of, key_part, before in row
            ]
            for group, part, position in row
        ]
    )


def last_tokens(shapes: list[Shape]) -> list[int]:
    """Return the last position of each branch of each group."""
    ends, end = [], 0
    for prefix, *tails in shapes:
        end += prefix
        for tail in tails:
            end += tail
            ends.append(end - 1)
    return ends


def seen_keys(queries: Queries, num_tokens: int) -> np.ndarray:
    """Count how often each of N queries sees each token of the row: ``[N, T]``."""
    if isinstance(queries, VarlenQueries):
        rows = _seen_by_sequences(queries)
    elif isinstance(queries, SharedQueries):
        rows = _seen_by_shared(queries)
    else:
        rows = _seen_by_groups(queries)
    return np.array([np.bincount(np.array(row), minlength=num_tokens) for row in rows])


def _seen_by_sequences(queries: VarlenQueries) -> list[list[int]]:
    query_starts, key_starts = queries.query_starts.tolist(), queries.key_starts.tolist()
    rows = []
    for i in range(len(query_starts) - 1):
        num_queries = query_starts[i + 1] - query_starts[i]
        keys = queries.key_positions[key_starts[i] : key_starts[i + 1]].tolist()
        for query in range(num_queries):  # causal, and aligned to the end
            rows.append(keys[: len(keys) - num_queries + query + 1])
    return rows


def _seen_by_shared(queries: SharedQueries) -> list[list[int]]:
    tails = queries.tails
    seen = _seen_by_groups(tails.own)
    for prefix in tails.prefixes:
        for query in range(prefix.first_query, prefix.end_query):
            seen[query] += range(prefix.first_key, prefix.end_key)
    num_rest = len(queries.rest.outputs)
    of_rest = [row for row, place in enumerate(queries.outputs.tolist()) if place < num_rest]
    rows = [*_seen_by_groups(queries.rest, of_rest), *seen]
    return [rows[place] for place in queries.outputs.tolist()]


def _seen_by_groups(
    queries: GroupedQueries, numbers: Sequence[int] | None = None
) -> list[list[int]]:
    placed = []
    for group, order, keys in branches_of(queries):
        for branch in range(len(order)):
            for place, query in enumerate(order[branch].tolist()):
                if group.mask is None:
                    seen = keys[branch, : place + 1]
                else:
                    seen = keys[branch][group.mask[branch, 0, place]]
                placed.append((query, seen.tolist()))
    outputs = queries.outputs.tolist()
    assert len(placed) == len(queries.query_order)
    assert [placed[output][0] for output in outputs] == list(numbers or range(len(outputs)))
    return [placed[output][1] for output in outputs]


def branches_of(queries: GroupedQueries) -> list[tuple[BranchGroup, Tensor, Tensor]]:
    """Return each group with its queries ``[G, Q]`` and its keys ``[G, K]``."""
    cut, first_query, first_key = [], 0, 0
    for group in queries.groups:
        num_branches, num_queries = group.query_ranks.shape
        after_query = first_query + num_branches * num_queries
        after_key = first_key + num_branches * group.num_keys
        cut.append(
            (
                group,
                queries.query_order[first_query:after_query].view(num_branches, num_queries),
                queries.key_positions[first_key:after_key].view(num_branches, group.num_keys),
            )
        )
        first_query, first_key = after_query, after_key
    assert first_query == len(queries.query_order)
    assert first_key == len(queries.key_positions)
    return cut


def grouped(packed: PackedGroups) -> list[GroupedQueries]:
    both = [packed.everywhere, packed.at_ends]
    return [queries for queries in both if isinstance(queries, GroupedQueries)]


def without_padding(values: Tensor) -> list[int]:
    """Return values without the repeats of the last one."""
    kept = values.tolist()
    while len(kept) > 1 and kept[-1] == kept[-2]:
        kept.pop()
    return kept


def test_grouped_indices_match_a_worked_example():
    packed = pack([(2, 1, 3), (0, 2, 1)], "grouped")

    everywhere, at_ends = packed.everywhere, packed.at_ends
    assert isinstance(everywhere, GroupedQueries)
    assert isinstance(at_ends, GroupedQueries)
    # First the branch after a prefix, then those without one by length: 8, 6 7 and 0 1 2.
    behind, square = everywhere.groups
    assert behind.query_ranks.tolist() == [[2, 3, 4]]
    assert behind.num_keys == 5
    assert behind.mask is not None
    assert behind.mask.int().tolist() == [[[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]]
    assert square.query_ranks.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    assert square.num_keys == 3
    assert square.mask is None
    assert everywhere.query_order.tolist() == [3, 4, 5, 8, 8, 8, 6, 7, 7, 0, 1, 2]
    assert everywhere.key_positions.tolist() == [0, 1, 3, 4, 5, 8, 8, 8, 6, 7, 7, 0, 1, 2]
    assert everywhere.outputs.tolist() == [9, 10, 11, 0, 1, 2, 6, 7, 3]
    # One query each; only the one of a single-token branch sees as many keys as queries.
    several, single = at_ends.groups
    assert several.query_ranks.tolist() == [[1], [2], [4]]
    assert several.num_keys == 5
    assert several.mask is not None
    assert several.mask[:, 0, 0].int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
    ]
    assert single.query_ranks.tolist() == [[0]]
    assert single.mask is None
    assert at_ends.query_order.tolist() == [2, 0, 1, 3]
    assert at_ends.key_positions.tolist() == [6, 7, 7, 7, 7, 0, 1, 2, 2, 2, 0, 1, 3, 4, 5, 8]
    assert at_ends.outputs.tolist() == [1, 2, 0, 3]


@given(shapes_of_groups, st.sampled_from(KERNELS), small_works, wastes, masks)
def test_every_token_attends_to_its_branch_only(
    shapes: list[Shape], kernel: Kernel, small_work: int, max_waste: float, max_mask: int
):
    packed = pack(shapes, kernel, small_work=small_work, max_waste=max_waste, max_mask=max_mask)

    expected = expected_attention(shapes).astype(int)
    num_tokens = packed.input_ids.numel()
    ends = last_tokens(shapes)
    assert packed.last_positions.tolist() == ends
    # Counts, not booleans: a key seen twice would weigh twice.
    np.testing.assert_array_equal(seen_keys(packed.everywhere, num_tokens), expected)
    np.testing.assert_array_equal(seen_keys(packed.at_ends, num_tokens), expected[ends])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "shapes",
    [
        [(0, 1, 1)],
        [(0, 1, 1)] * 3,
        [(5, 1, 1)],
        [(0, 40, 1), (0, 1, 40)],
        [(40, 1, 1), (0, 1, 1), (1, 40, 40)],
        [(1, 1, 80), (80, 80, 1), (3, 2, 2), (3, 2, 2)],
        [(0, 1)],
        [(9, 1), (0, 1, 1, 1, 1, 1), (1, 9)],
        [(40, 1, 40, 1), (1, 1, 1, 80), (0, 2, 2, 2, 2, 2)],
    ],
)
def test_extreme_groups_attend_to_their_branches_only(shapes: list[Shape], kernel: Kernel):
    expected = expected_attention(shapes).astype(int)
    for small_work in (1, attention_index.SMALL_WORK):
        packed = pack(shapes, kernel, small_work=small_work)
        np.testing.assert_array_equal(seen_keys(packed.everywhere, len(expected)), expected)
        np.testing.assert_array_equal(
            seen_keys(packed.at_ends, len(expected)), expected[last_tokens(shapes)]
        )


@given(shapes_of_groups)
def test_the_maxima_are_the_lengths_of_the_longest_sequences(shapes: list[Shape]):
    packed = pack(shapes, "varlen")

    for queries in (packed.everywhere, packed.at_ends):
        assert isinstance(queries, VarlenQueries)
        assert queries.query_starts.dtype == queries.key_starts.dtype == torch.int32
        num_branches = sum(len(tails) for _, *tails in shapes)
        assert len(queries.query_starts) == len(queries.key_starts) == num_branches + 1
        assert queries.query_starts[0] == queries.key_starts[0] == 0
        assert queries.key_starts[-1] == len(queries.key_positions)
        assert queries.query_starts.diff().max() == queries.max_queries
        assert queries.key_starts.diff().max() == queries.max_keys
        assert (queries.query_starts.diff() <= queries.key_starts.diff()).all()


@given(shapes_of_groups, small_works, wastes)
def test_every_query_has_one_output_and_padding_repeats_its_branch_s_last_one(
    shapes: list[Shape], small_work: int, max_waste: float
):
    packed = pack(shapes, "grouped", small_work=small_work, max_waste=max_waste)

    expected, ends = expected_attention(shapes), last_tokens(shapes)
    rows_of_queries = [list(range(len(expected))), ends]
    for queries, rows in zip(grouped(packed), rows_of_queries, strict=True):
        is_output = torch.zeros(len(queries.query_order), dtype=torch.bool)
        is_output[queries.outputs] = True
        assert is_output.sum() == len(rows)  # no two queries end up in one place
        assert queries.query_order[queries.outputs].tolist() == list(range(len(rows)))
        first = 0
        for _, order, keys in branches_of(queries):
            are_outputs = is_output[first : first + order.numel()].view(order.shape)
            first += order.numel()
            for branch, is_real, of_branch in zip(order, are_outputs, keys, strict=True):
                real = branch[is_real].tolist()
                assert real == list(range(real[0], real[-1] + 1))
                assert branch.tolist() == padded(real, len(branch))
                own = np.flatnonzero(expected[rows[real[-1]]]).tolist()
                assert of_branch.tolist() == padded(own, len(of_branch))
            assert are_outputs.sum(dim=1).max() == order.shape[1]  # no more than needed
            assert max(len(without_padding(branch)) for branch in keys) == keys.shape[1]


def padded(values: list[int], length: int) -> list[int]:
    return values + values[-1:] * (length - len(values))


@given(shapes_of_groups, small_works)
def test_a_query_s_rank_is_its_place_among_the_keys_it_sees(shapes: list[Shape], small_work: int):
    packed = pack(shapes, "grouped", small_work=small_work)

    for queries in grouped(packed):
        for group, order, keys in branches_of(queries):
            for ranks, branch, of_branch in zip(group.query_ranks, order, keys, strict=True):
                seen = of_branch[ranks]
                if queries is packed.everywhere:
                    assert seen.tolist() == branch.tolist()  # each sees itself last
                else:
                    assert seen.tolist() == packed.last_positions[branch].tolist()


@given(shapes_of_groups, small_works)
def test_a_group_lacks_a_mask_only_if_plain_causal_attention_is_correct(
    shapes: list[Shape], small_work: int
):
    packed = pack(shapes, "grouped", small_work=small_work)

    for queries in grouped(packed):
        for group, order, keys in branches_of(queries):
            if group.mask is None:
                assert order.shape == keys.shape
                for branch, of_branch in zip(order, keys, strict=True):
                    assert len(without_padding(branch)) == len(without_padding(of_branch))
            else:
                assert group.mask.shape == (len(order), 1, order.shape[1], keys.shape[1])
                assert group.mask.dtype == torch.bool
                assert group.mask.any(dim=-1).all()  # a query that sees nothing would be NaN


@given(
    shapes_of_groups,
    st.sampled_from([1, 100, 1_000]),
    st.sampled_from([0.0, 0.15, 0.5]),
)
def test_a_group_is_small_or_wastes_little_and_could_not_grow(
    shapes: list[Shape], small_work: int, max_waste: float
):
    packed = pack(shapes, "grouped", small_work=small_work, max_waste=max_waste)

    num_keys = np.array([prefix + tail for prefix, *tails in shapes for tail in tails])
    everywhere = np.array(
        [tail if i else prefix + tail for prefix, *tails in shapes for i, tail in enumerate(tails)]
    )
    for queries, num_queries in zip(
        grouped(packed), (everywhere, np.ones_like(num_keys)), strict=True
    ):
        last_query = np.cumsum(num_queries) - 1

        def fits(branches: list[int], num_queries: np.ndarray = num_queries) -> bool:
            of_queries, of_keys = num_queries[branches], num_keys[branches]
            work = len(branches) * of_keys.max() * (of_queries.max() + attention_index.KEY_WORK)
            wasted = work - (of_keys * (of_queries + attention_index.KEY_WORK)).sum()
            return len(branches) == 1 or bool(work <= small_work or wasted <= max_waste * work)

        groups = [
            np.searchsorted(last_query, order[:, -1].numpy()).tolist()
            for _, order, _ in branches_of(queries)
        ]
        assert all(fits(members) for members in groups)
        for members, (following, *_) in pairwise(groups):
            is_square = (num_queries == num_keys)[[*members, following]]
            assert len(set(is_square.tolist())) == 2 or not fits([*members, following])


@given(shapes_of_groups, masks, small_works)
def test_a_large_mask_is_left_only_where_attention_without_it_costs_much_more(
    shapes: list[Shape], max_mask: int, small_work: int
):
    packed = pack(shapes, "grouped", max_mask=max_mask, small_work=small_work)

    real = sum(map(sum, shapes))
    for queries, num_queries in zip(
        grouped(packed), (real, sum(len(tails) for _, *tails in shapes)), strict=True
    ):
        assert len(queries.outputs) == num_queries
        filled = len(queries.query_order) - num_queries
        assert filled >= 0
    everywhere = grouped(packed)[0]
    lengths = [
        (own if i else prefix + own, prefix + own)
        for prefix, *tails in shapes
        for i, own in enumerate(tails)
    ]
    masked = {
        (len(without_padding(order)), len(without_padding(keys)))
        for group, orders, of_keys in branches_of(everywhere)
        for order, keys in zip(orders, of_keys, strict=True)
        if group.mask is not None
    }
    assert masked == {
        (own, keys)
        for own, keys in lengths
        if own < keys and (own * keys <= max_mask or keys > attention_index.MAX_SQUARE * own)
    }


def test_a_long_tail_is_filled_up_to_plain_causal_attention():
    packed = pack([(2, 1, 3)], "grouped", max_mask=14)

    (filled,) = grouped(packed)[0].groups
    assert filled.mask is None
    assert filled.query_ranks.tolist() == [[0, 1, 2, 2, 2], [0, 1, 2, 3, 4]]
    # The prefix and the first tail, 0 1 2; the second tail, 3 4 5, its first query three times.
    assert grouped(packed)[0].query_order.tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 4, 5]
    assert grouped(packed)[0].key_positions.tolist() == [0, 1, 2, 2, 2, 0, 1, 3, 4, 5]
    assert grouped(packed)[0].outputs.tolist() == [0, 1, 2, 7, 8, 9]
    (kept, _) = pack([(2, 1, 3)], "grouped", max_mask=15, small_work=1).everywhere.groups  # type: ignore[union-attr]
    assert kept.mask is not None


def test_conversations_of_up_to_4096_tokens_are_never_filled():
    assert 4_095 * 4_096 <= attention_index.MAX_MASK < 4_097 * 4_097


@pytest.mark.parametrize("num_responses", [2, 5])
def test_all_masks_together_are_far_smaller_than_a_mask_over_the_whole_row(num_responses: int):
    rng = np.random.default_rng(0)
    prefix = rng.lognormal(5, 0.7, 40).astype(int)
    tails = 1 + rng.lognormal(5, 0.9, (num_responses, 40)).astype(int)
    shapes = list(zip(prefix.tolist(), *tails.tolist(), strict=True))

    packed = pack(shapes, "grouped")

    num_tokens = packed.input_ids.numel()
    for queries in grouped(packed):
        masks = [group.mask.numel() for group in queries.groups if group.mask is not None]
        assert sum(masks) < num_tokens**2 / 20


def test_branches_of_equal_length_form_one_group():
    packed = pack([(7, 4, 4)] * 9, "grouped", small_work=1)

    for queries in grouped(packed):
        assert len(queries.outputs) == len(queries.query_order)  # nothing is padded
    everywhere, at_ends = grouped(packed)
    assert [len(group.query_ranks) for group in everywhere.groups] == [9, 9]
    assert [len(group.query_ranks) for group in at_ends.groups] == [18]


def test_all_but_the_first_of_many_equal_tails_form_one_group():
    packed = pack([(7, 4, 4, 4, 4, 4), (7, 4)], "grouped", small_work=1)

    everywhere, at_ends = grouped(packed)
    assert [len(group.query_ranks) for group in everywhere.groups] == [4, 2]
    assert [len(group.query_ranks) for group in at_ends.groups] == [6]
