from dataclasses import fields

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.collate import unlabelled
from rm_ray.batches.padding import PaddedGroups, pad_groups
from rm_ray.data.cache.group_tokens import join_groups

Conversations = list[np.ndarray]

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12).map(
    lambda values: np.array(values, dtype=np.int32)
)
groups_of_ids = st.lists(st.lists(ids, min_size=1, max_size=5), min_size=1, max_size=6)


def pad(groups: list[Conversations], pad_token_id: int = 0) -> PaddedGroups:
    joined = join_groups(groups)
    return pad_groups(joined, unlabelled(joined), pad_token_id=pad_token_id)


def rows_of(groups: list[Conversations]) -> Conversations:
    """Return the first conversation of each group, then the second ones, and so on."""
    most = max(map(len, groups))
    return [group[place] for place in range(most) for group in groups if place < len(group)]


def test_two_pairs_become_four_rows_first_chosen_then_rejected():
    pairs = join_groups([([1, 2, 3], [5, 6]), ([4], [7, 8, 9, 10])])
    batch = pad_groups(pairs, unlabelled(pairs), pad_token_id=99)

    assert batch.input_ids.tolist() == [
        [1, 2, 3, 99],
        [4, 99, 99, 99],
        [5, 6, 99, 99],
        [7, 8, 9, 10],
    ]
    assert batch.attention_mask.tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
    ]
    assert batch.last_positions.tolist() == [2, 0, 1, 3]
    assert batch.rows.tolist() == [0, 2, 1, 3]


def test_groups_of_three_one_and_two_become_six_rows_by_place_in_the_group():
    groups = join_groups([([1], [2], [3, 3]), ([4, 4],), ([5, 5, 5], [6])])
    batch = pad_groups(groups, unlabelled(groups), pad_token_id=99)

    assert batch.input_ids.tolist() == [
        [1, 99, 99],
        [4, 4, 99],
        [5, 5, 5],
        [2, 99, 99],
        [6, 99, 99],
        [3, 3, 99],
    ]
    assert batch.last_positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.rows.tolist() == [0, 3, 5, 1, 2, 4]


@given(groups_of_ids, st.integers(0, 2**31 - 1))
def test_the_mask_selects_every_id_in_order(groups: list[Conversations], pad_token_id: int):
    batch = pad(groups, pad_token_id)

    rows = zip(batch.input_ids, batch.attention_mask, rows_of(groups), strict=True)
    for got, mask, row in rows:
        assert got[mask.bool()].tolist() == row.tolist()
        assert got[~mask.bool()].tolist() == [pad_token_id] * (len(got) - len(row))


@given(groups_of_ids)
def test_each_response_has_the_row_of_its_own_ids(groups: list[Conversations]):
    batch = pad(groups)

    found = [
        batch.input_ids[row, : batch.last_positions[row] + 1].tolist()
        for row in batch.rows.tolist()
    ]
    assert found == [ids.tolist() for group in groups for ids in group]
    assert sorted(batch.rows.tolist()) == list(range(len(found)))


@given(groups_of_ids)
def test_padding_is_on_the_right_and_no_longer_than_the_longest_row(groups: list[Conversations]):
    batch = pad(groups)

    rows = [ids for group in groups for ids in group]
    assert batch.input_ids.shape == (len(rows), max(map(len, rows)))
    assert batch.attention_mask.shape == batch.input_ids.shape
    falls = batch.attention_mask.diff(dim=1)
    assert (falls <= 0).all()


@given(groups_of_ids)
def test_last_positions_point_at_the_last_id_of_each_row(groups: list[Conversations]):
    batch = pad(groups, pad_token_id=int(groups[0][0][-1]))  # even if it looks like padding

    rows = rows_of(groups)
    last = batch.input_ids.gather(1, batch.last_positions[:, None])[:, 0]
    assert last.tolist() == [int(row[-1]) for row in rows]
    assert batch.last_positions.tolist() == [len(row) - 1 for row in rows]


def test_every_number_is_an_index_of_64_bits():
    groups = join_groups([([1, 2], [1, 3])])
    labels = unlabelled(groups)
    batch = pad_groups(groups, labels, pad_token_id=0)

    assert batch.labels is labels
    numbers = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "labels"}
    assert {name: number.dtype for name, number in numbers.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "last_positions": torch.int64,
        "rows": torch.int64,
    }


def test_a_batch_shares_no_memory_with_its_groups():
    groups = join_groups([([1, 2], [1, 3])])
    batch = pad_groups(groups, unlabelled(groups), pad_token_id=0)

    groups.tokens[0], groups.lengths.conversations[0] = 5, 5

    assert batch.input_ids.tolist() == [[1, 2], [1, 3]]
    assert batch.last_positions.tolist() == [1, 1]
