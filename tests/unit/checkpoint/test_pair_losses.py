from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.checkpoint.pair_losses import PairLosses


def stored(losses: PairLosses, folder: Path) -> PairLosses:
    losses.write(folder / "pair_losses.npy")
    return PairLosses.read(folder / "pair_losses.npy")


def test_a_run_before_its_first_step_has_no_losses():
    empty = PairLosses.empty(2, 3)
    assert empty.values.shape == (2, 3) and empty.values.dtype == np.float32
    assert np.isnan(empty.values).all()


@given(st.data())
def test_losses_are_found_under_their_epoch_and_pair(data: st.DataObject):
    losses, expected = PairLosses.empty(3, 8), np.full((3, 8), np.nan, dtype=np.float32)
    for epoch in range(3):
        pairs = data.draw(st.lists(st.integers(0, 7), unique=True))
        values = [data.draw(st.floats(0, 1e4, width=32)) for _ in pairs]
        losses.add(epoch, np.array(pairs, dtype=np.int64), np.array(values, dtype=np.float32))
        for pair, value in zip(pairs, values, strict=True):
            expected[epoch, pair] = value
    np.testing.assert_array_equal(losses.values, expected)


def test_a_round_trip_keeps_every_bit_in_four_bytes_a_pair_and_epoch(tmp_path: Path):
    losses = PairLosses.empty(2, 10_000)
    values = np.random.default_rng(0).random(5_000, dtype=np.float32)
    losses.add(1, np.arange(5_000), values)

    again = stored(losses, tmp_path)

    assert again.values.tobytes() == losses.values.tobytes()
    assert (tmp_path / "pair_losses.npy").stat().st_size < 80_200


def test_losses_after_a_round_trip_take_more(tmp_path: Path):
    again = stored(PairLosses.empty(1, 2), tmp_path)
    again.add(0, np.array([1]), np.array([0.5], dtype=np.float32))
    np.testing.assert_array_equal(again.values, np.array([[np.nan, 0.5]], dtype=np.float32))


def test_a_pickled_file_is_not_loaded(tmp_path: Path):
    np.save(tmp_path / "pair_losses.npy", np.array([{"an": "object"}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        PairLosses.read(tmp_path / "pair_losses.npy")
