from dataclasses import fields

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.padding import PaddedPairs, pad_pairs
from rm_ray.data.cache.pair_tokens import join_pairs

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12).map(
    lambda values: np.array(values, dtype=np.int32)
)
pairs_of_ids = st.lists(st.tuples(ids, ids), min_size=1, max_size=6)


def pad(pairs: list[tuple[np.ndarray, np.ndarray]], pad_token_id: int = 0) -> PaddedPairs:
    return pad_pairs(
        join_pairs(pairs),
        margins=np.zeros(len(pairs)),
        weights=np.ones(len(pairs)),
        pad_token_id=pad_token_id,
    )


def test_two_pairs_become_four_rows_first_chosen_then_rejected():
    batch = pad_pairs(
        join_pairs([([1, 2, 3], [5, 6]), ([4], [7, 8, 9, 10])]),
        margins=np.array([0.5, 0.0]),
        weights=np.array([1.0, 0.0]),
        pad_token_id=99,
    )

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
    assert batch.margins.tolist() == [0.5, 0.0]
    assert batch.weights.tolist() == [1.0, 0.0]


@given(pairs_of_ids, st.integers(0, 2**31 - 1))
def test_the_mask_selects_every_id_in_order(
    pairs: list[tuple[np.ndarray, np.ndarray]], pad_token_id: int
):
    batch = pad(pairs, pad_token_id)

    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    for got, mask, row in zip(batch.input_ids, batch.attention_mask, rows, strict=True):
        assert got[mask.bool()].tolist() == row.tolist()
        assert got[~mask.bool()].tolist() == [pad_token_id] * (len(got) - len(row))


@given(pairs_of_ids)
def test_padding_is_on_the_right_and_no_longer_than_the_longest_row(
    pairs: list[tuple[np.ndarray, np.ndarray]],
):
    batch = pad(pairs)

    assert batch.input_ids.shape == (2 * len(pairs), max(len(row) for p in pairs for row in p))
    assert batch.attention_mask.shape == batch.input_ids.shape
    falls = batch.attention_mask.diff(dim=1)
    assert (falls <= 0).all()


@given(pairs_of_ids)
def test_last_positions_point_at_the_last_id_of_each_row(
    pairs: list[tuple[np.ndarray, np.ndarray]],
):
    batch = pad(pairs, pad_token_id=int(pairs[0][0][-1]))  # even if it looks like padding

    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    last = batch.input_ids.gather(1, batch.last_positions[:, None])[:, 0]
    assert last.tolist() == [int(row[-1]) for row in rows]
    assert batch.last_positions.tolist() == [len(row) - 1 for row in rows]


@given(st.sampled_from([np.float64, np.float32, np.int64]))
def test_numbers_have_the_types_that_the_model_and_the_loss_expect(given_type: type):
    batch = pad_pairs(
        join_pairs([([1, 2], [1, 3])]),
        margins=np.array([2], dtype=given_type),
        weights=np.array([1], dtype=given_type),
        pad_token_id=0,
    )

    assert {f.name: getattr(batch, f.name).dtype for f in fields(batch)} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "last_positions": torch.int64,
        "margins": torch.float32,
        "weights": torch.float32,
    }


def test_a_batch_shares_no_memory_with_its_pairs():
    margins, weights = np.zeros(1, np.float32), np.ones(1, np.float32)
    pairs = join_pairs([([1, 2], [1, 3])])
    batch = pad_pairs(pairs, margins=margins, weights=weights, pad_token_id=0)

    margins[0], weights[0], pairs.tokens[0] = 5, 5, 5

    assert batch.margins.tolist() == [0.0]
    assert batch.weights.tolist() == [1.0]
    assert batch.input_ids.tolist() == [[1, 2], [1, 3]]
