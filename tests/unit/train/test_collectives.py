from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import call_collectives, spawn
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.train.collectives import (
    any_rank,
    gather_objects,
    merge_disjoint,
    split_votes,
    sum_counts,
    sum_over_ranks,
    sum_with_votes,
)

CPU = torch.device("cpu")
VOTES = st.lists(st.booleans(), max_size=3)
NUMBERS = st.lists(st.floats(allow_nan=False), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two ranks."""
    folder: Path = tmp_path_factory.mktemp("collectives")
    spawn(call_collectives, 2, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_every_rank_gets_the_objects_of_all_in_order(found):
    assert [one["gathered"] for one in found] == [[{"rank": 0}, {"rank": 1}]] * 2


def test_tensors_and_counts_are_added_up_over_ranks(found):
    for rank, one in enumerate(found):
        assert one["summed"] == [2.0, 10.0]
        assert one["counts"] == [2, 1, 2**41]
        assert one["kept"] == [1, rank, 2**40]  # the input does not change


def test_any_rank_decides_for_all(found):
    assert [one["any"] for one in found] == [[False, True, True]] * 2


def test_votes_do_not_change_the_sums_they_travel_with(found):
    for rank, one in enumerate(found):
        assert one["together"] == [0.2, 2.0**54, 1.0, 0.0, 1.0, 2.0]
        assert one["split"] == ([0.2, 2.0**54, 1.0], [False, True, True])
        assert one["sums"] == [0.1, 2.0**53, rank]


def test_a_single_rank_needs_no_process_group():
    tensor = torch.tensor([1.5])
    sum_over_ranks(tensor)
    assert tensor.item() == 1.5
    assert gather_objects("mine") == ["mine"]
    assert sum_counts(np.array([3, 4]), CPU).tolist() == [3, 4]
    assert any_rank([True, False], CPU) == [True, False]


@given(NUMBERS, VOTES)
def test_a_single_rank_gets_its_own_sums_and_votes(numbers: list[float], votes: list[bool]):
    together = sum_with_votes(torch.tensor(numbers, dtype=torch.float64), votes)
    assert together.dtype == torch.float64
    assert split_votes(together.tolist(), len(votes)) == (numbers, votes)


def test_numbers_that_one_rank_knows_reach_all_bit_for_bit(found):
    expected = np.array([[0, 0.1, np.nan], [-3.5, np.nan, np.nan]], dtype=np.float32)
    for rank, one in enumerate(found):
        np.testing.assert_array_equal(one["merged"], expected, strict=True)
        known = ~np.isnan(one["own"])
        assert known.sum() == 2 - rank, "a rank's own numbers stay as they are"


def test_a_single_rank_keeps_its_numbers():
    own = np.array([np.nan, 1.5], dtype=np.float32)
    assert merge_disjoint(own, CPU) is own
