import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_checkpoint import write_checkpoint

from rm_ray.runs.manifest import (
    MANIFEST,
    Manifest,
    find_fault,
    find_intact,
    read_checkpoint,
    read_manifest,
)
from rm_ray.storage import Storage


@pytest.fixture
def run_folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


def fault_of(run_folder: Storage, folder: Path) -> str | None:
    return find_fault(run_folder, folder.name, read_manifest(run_folder, folder.name))


def test_an_untouched_checkpoint_has_no_fault(run_folder: Storage):
    assert fault_of(run_folder, write_checkpoint(run_folder, 5)) is None


def test_a_flipped_bit_is_found(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    path = folder / "slices-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert fault_of(run_folder, folder) == (
        "slices-00000.safetensors does not match the checksum in its manifest"
    )


def test_checksums_are_shared_among_ranks(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    (folder / "slices-00000.safetensors").write_bytes(bytes(2560))
    manifest = read_manifest(run_folder, folder.name)
    faults = [
        find_fault(run_folder, folder.name, manifest, share=rank, shares=2) for rank in range(2)
    ]
    assert [fault is None for fault in faults].count(False) == 1


def test_each_file_that_is_read_is_told(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    manifest = read_manifest(run_folder, folder.name)
    assert manifest is not None
    told: list[None] = []
    where = {"name": folder.name, "manifest": manifest}
    assert find_fault(run_folder, **where, on_file=lambda: told.append(None)) is None
    assert len(told) == len(manifest.files) > 1


def test_without_shares_only_sizes_are_compared(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    path = folder / "slices-00000.safetensors"
    manifest = read_manifest(run_folder, folder.name)

    path.write_bytes(bytes(2560))
    assert find_fault(run_folder, folder.name, manifest, shares=0) is None

    path.write_bytes(bytes(2559))
    fault = "slices-00000.safetensors has 2559 bytes instead of 2560"
    assert find_fault(run_folder, folder.name, manifest, shares=0) == fault

    path.unlink()
    fault = "slices-00000.safetensors is missing"
    assert find_fault(run_folder, folder.name, manifest, shares=0) == fault


def test_a_truncated_file_is_found(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    path = folder / "data" / "trained_pairs.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert fault_of(run_folder, folder) == "data/trained_pairs.npz has 10 bytes instead of 11"


def test_a_missing_file_is_found(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    (folder / "data" / "trained_pairs.npz").unlink()
    assert fault_of(run_folder, folder) == "data/trained_pairs.npz is missing"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', None])
def test_a_checkpoint_without_a_manifest_does_not_count(run_folder: Storage, content: str | None):
    folder = write_checkpoint(run_folder, 5)
    if content is None:
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text(content)
    assert fault_of(run_folder, folder) == "manifest.json is missing or unreadable"


@pytest.mark.parametrize("error", [OSError("no route"), ConnectionError(), PermissionError()])
def test_an_unreachable_storage_does_not_make_a_checkpoint_faulty(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    folder = write_checkpoint(run_folder, 5)

    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(Storage, "read_text", fail)

    with pytest.raises(type(error)):
        read_manifest(run_folder, folder.name)


def test_a_manifest_survives_a_round_trip(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    manifest = read_manifest(run_folder, folder.name)
    assert manifest is not None
    again = replace(manifest, files=json.loads(json.dumps(manifest.files)))
    assert Manifest.from_json(again.to_json()) == manifest


@pytest.mark.parametrize(
    ("before", "after"),
    [('"step": 5', '"step": 7'), ('"plan_fingerprint": "', '"plan_fingerprint": "x'), ("{", "[")],
)
def test_a_modified_manifest_is_rejected(run_folder: Storage, before: str, after: str):
    folder = write_checkpoint(run_folder, 5)
    text = run_folder.read_text(f"{folder.name}/{MANIFEST}")
    assert before in text
    run_folder.write_text(f"{folder.name}/{MANIFEST}", text.replace(before, after, 1))
    assert read_manifest(run_folder, folder.name) is None


def test_intact_checkpoints_are_found_by_their_sizes(run_folder: Storage):
    cut, other, damaged = (write_checkpoint(run_folder, step) for step in (5, 10, 15))
    (cut / "slices-00000.safetensors").write_bytes(bytes(2559))
    (damaged / "slices-00000.safetensors").write_bytes(bytes(2560))
    without = write_checkpoint(run_folder, 20)
    (without / MANIFEST).unlink()

    found = find_intact(run_folder, [without.name, damaged.name, other.name, cut.name])

    assert [checkpoint.name for checkpoint in found] == [damaged.name, other.name]


def test_a_checkpoint_has_the_size_of_its_files(run_folder: Storage):
    found = read_checkpoint(run_folder, write_checkpoint(run_folder, 5).name)
    assert found is not None
    assert (found.manifest.step, found.size) == (5, 2560 + 11)
