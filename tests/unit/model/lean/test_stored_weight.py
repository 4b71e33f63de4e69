from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rm_ray.model.lean.stored_weight import find_stored_weights

WEIGHTS = {
    "matrix": torch.arange(35.0).view(5, 7),
    "half": torch.arange(24.0).view(2, 3, 4).bfloat16(),
    "vector": torch.arange(9.0),
    "scalar": torch.tensor(3.0),
}


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_any_part_of_a_weight_is_read(tmp_path: Path, name: str):
    if name.endswith("bin"):
        torch.save(WEIGHTS, tmp_path / name)
    else:
        save_file(WEIGHTS, tmp_path / name)
    stored = find_stored_weights([tmp_path / name])
    assert stored is not None
    assert stored.keys() == WEIGHTS.keys()
    for key, weight in WEIGHTS.items():
        flat, source = weight.flatten(), stored[key]
        assert (source.shape, source.dtype) == (weight.shape, weight.dtype)
        assert torch.equal(source.read(), flat)
        for first in range(len(flat)):
            for last in range(first, len(flat) + 1):
                part = source.read(first, last)
                assert part.dtype == weight.dtype
                assert torch.equal(part, flat[first:last]), (key, first, last)


def test_a_transposed_weight_in_a_pickle_is_read_in_its_own_order(tmp_path: Path):
    torch.save({"turned": torch.arange(6.0).view(2, 3).t()}, tmp_path / "weights.bin")
    stored = find_stored_weights([tmp_path / "weights.bin"])
    assert stored is not None
    assert stored["turned"].read(1, 4).tolist() == [3.0, 1.0, 4.0]


def test_of_two_files_with_the_same_weight_the_later_one_counts(tmp_path: Path):
    for i in range(2):
        save_file({"one": torch.full((3,), float(i))}, tmp_path / f"{i}.safetensors")
    stored = find_stored_weights([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    assert stored is not None
    assert stored["one"].read().tolist() == [1.0, 1.0, 1.0]


def test_a_pickle_that_is_no_zip_archive_cannot_be_read_in_parts(tmp_path: Path):
    file = tmp_path / "weights.bin"
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=False)
    assert find_stored_weights([file]) is None
