from pathlib import Path

import numpy as np
import pytest

from rm_ray.errors import InputError
from rm_ray.runs.row_losses import RowLosses
from rm_ray.storage import Storage


@pytest.fixture
def run_folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path)).folder("run")


def test_losses_survive_a_round_trip_with_the_places_of_their_rows(run_folder: Storage):
    losses = RowLosses(
        origins=("a.jsonl", "größer:train"),
        fragment=np.array([0, 0, 1], dtype=np.int32),
        row=np.array([0, 7, 2**40], dtype=np.int64),
        floor=np.array([0.0, 0.0, 0.25]),
        losses=np.array([[0.1, 2.0, np.nan], [0.3, 1.0, 0.5]], dtype=np.float32),
    )
    losses.write(run_folder)
    again = RowLosses.read(run_folder)
    assert again is not None and again.origins == losses.origins
    for name in ("fragment", "row", "floor", "losses"):
        np.testing.assert_array_equal(vars(again)[name], vars(losses)[name], strict=True)


def test_a_run_that_kept_none_has_none(run_folder: Storage):
    assert RowLosses.read(run_folder) is None


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_an_input_error_that_says_what_to_do(run_folder: Storage, content: bytes):
    path = Path(run_folder.join("pair_losses/losses.npz"))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"losses\.npz cannot be read .*name the run's export"):
        RowLosses.read(run_folder)
