"""Weight files: complete, cut short, missing, and of the wrong kind."""

import json
import os
from pathlib import Path

import pytest
import torch
from base_models import found, make, refusal, scatter
from safetensors.torch import load_file

from rm_ray.errors import InputError
from rm_ray.model.base_check import BaseModel
from rm_ray.model.weight_files import choose_weight_files, read_headers


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make(tmp_path / "llama", "llama")
    return tmp_path / "llama"


def test_a_truncated_file_is_named(tmp_path):
    make(tmp_path, "llama", max_shard_size="40KB")
    file = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = file.read_bytes()
    assert found(tmp_path) is not None
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert f"{file.name} is incomplete" in refusal(tmp_path)
    file.unlink()
    assert f"{file.name} is missing" in refusal(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-5])
    assert "the index of the model's weight files is incomplete" in refusal(tmp_path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_weights_are_read_without_their_values(llama, is_zip):
    weights = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    file = llama / "pytorch_model.bin"
    torch.save(weights, file, _use_new_zipfile_serialization=is_zip)
    assert found(llama) == BaseModel(num_weights=21)
    whole = file.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert "pytorch_model.bin is incomplete" in refusal(llama)


def test_a_file_that_holds_no_weights_is_refused(llama):
    (llama / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(llama)
    file = llama / "pytorch_model.bin"
    torch.save({"a": Calls()}, file)
    assert "contains code" in refusal(llama)
    file.write_text("<html>not found</html>")
    assert "is not a weight file" in refusal(llama)
    torch.save([torch.zeros(3)], file)
    assert "holds a list" in refusal(llama)


class Calls:
    """A pickle that would call something."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.getcwd, ()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_refused(llama, name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"
    (llama / name).write_text(text)
    assert f"{name} is a Git LFS pointer" in refusal(llama)


def test_the_files_that_transformers_reads_are_chosen(llama):
    """A single file before an index, safetensors before pickles."""
    other = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (llama / "pytorch_model.bin.index.json").write_text(json.dumps(other))
    (llama / "pytorch_model.bin").write_bytes(b"cut")
    assert found(llama) is not None


def test_shards_may_be_in_folders_of_their_own(tmp_path):
    make(tmp_path, "llama", max_shard_size="50KB")
    expected = read_headers(choose_weight_files(tmp_path)).keys()
    scatter(tmp_path)
    assert read_headers(choose_weight_files(tmp_path)).keys() == expected
    (tmp_path / "part1" / "w.safetensors").unlink()
    with pytest.raises(InputError, match=r"^part1/w\.safetensors is missing"):
        choose_weight_files(tmp_path)
