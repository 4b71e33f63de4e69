import json
from pathlib import Path

import pytest

from rm_ray.train.checkpoint import MANIFEST, describe_files, find_fault


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "zero").mkdir()
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "zero" / "rank-0.pt").write_bytes(b"optimizer state")
    (tmp_path / MANIFEST).write_text(json.dumps({"files": describe_files(tmp_path)}))
    return tmp_path


def test_an_untouched_checkpoint_has_no_fault(checkpoint):
    assert find_fault(checkpoint) is None


def test_a_flipped_bit_is_found(checkpoint):
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert find_fault(checkpoint) == "model.safetensors does not have the checksum of its manifest"


def test_a_truncated_file_is_found(checkpoint):
    path = checkpoint / "zero" / "rank-0.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert find_fault(checkpoint) == "zero/rank-0.pt has 14 bytes instead of 15"


def test_a_missing_file_is_found(checkpoint):
    (checkpoint / "zero" / "rank-0.pt").unlink()
    assert find_fault(checkpoint) == "zero/rank-0.pt is missing"


@pytest.mark.parametrize("text", [None, "", "{", "{}"])
def test_a_checkpoint_without_a_readable_manifest_is_none(checkpoint, text):
    (checkpoint / MANIFEST).unlink()
    if text is not None:
        (checkpoint / MANIFEST).write_text(text)
    assert find_fault(checkpoint) == f"{MANIFEST} is missing or unreadable"
