import shutil
import tempfile
import uuid
from pathlib import Path

import pytest

from rm_ray.checkpoint.staging import (
    STAGED,
    discard_staged,
    mark_staged,
    rescue_staged,
    staging_folder,
    upload_staged,
)
from rm_ray.storage import Storage

KEY = "7f3a"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the machine's disk."""
    folder = tmp_path / "machine"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(params=["folder", "fsspec URI"])
def run_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    uris = {"folder": str(tmp_path / "storage"), "fsspec URI": f"memory://{uuid.uuid4().hex}"}
    return Storage.open(uris[request.param]).folder("reward-model")


def stage(rank: int, name: str, *, is_marked: bool, key: str = KEY) -> Path:
    """Write a rank's staged part of a checkpoint, and its marker if every rank has staged."""
    folder = staging_folder(key) / f"rank-{rank}" / name
    (folder / "data").mkdir(parents=True)
    (folder / f"slices-{rank:05d}.safetensors").write_bytes(bytes([rank, 255, 0]))
    (folder / "data" / f"of-{rank}.txt").write_text(name)
    if is_marked:
        folder.with_suffix(STAGED).touch()
    return folder


def files(storage: Storage, name: str = "") -> list[str]:
    """Return the paths of all files below a folder."""
    found = []
    for info in storage.list(name):
        path = f"{name}/{info.name}".lstrip("/")
        found += [path] if info.is_file else files(storage, path)
    return found


def test_a_checkpoint_that_every_rank_has_staged_is_uploaded(run_folder: Storage):
    for rank in (0, 3):
        stage(rank, "checkpoint_00000010_0001", is_marked=True)

    rescue_staged(run_folder, KEY)

    assert files(run_folder) == [
        "checkpoint_00000010_0001/data/of-0.txt",
        "checkpoint_00000010_0001/data/of-3.txt",
        "checkpoint_00000010_0001/slices-00000.safetensors",
        "checkpoint_00000010_0001/slices-00003.safetensors",
    ]
    assert (
        run_folder.read_text("checkpoint_00000010_0001/data/of-3.txt") == "checkpoint_00000010_0001"
    )
    with run_folder.filesystem.open_input_stream(
        run_folder.join("checkpoint_00000010_0001/slices-00003.safetensors")
    ) as stream:
        assert stream.read() == bytes([3, 255, 0])


def test_a_partly_staged_checkpoint_is_dropped(run_folder: Storage):
    stage(0, "checkpoint_00000010_0001", is_marked=True)
    stage(0, "checkpoint_00000020_0001", is_marked=False)
    stage(1, "checkpoint_00000020_0001", is_marked=False)

    rescue_staged(run_folder, KEY)

    assert {file.split("/")[0] for file in files(run_folder)} == {"checkpoint_00000010_0001"}


def test_a_marker_without_a_folder_uploads_nothing(run_folder: Storage):
    folder = stage(0, "checkpoint_00000010_0001", is_marked=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()

    rescue_staged(run_folder, KEY)

    assert files(run_folder) == []


def test_a_folder_that_vanishes_meanwhile_is_ignored(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch
):
    gone = stage(0, "checkpoint_00000010_0001", is_marked=True)
    stage(0, "checkpoint_00000020_0001", is_marked=True)
    upload = Storage.upload

    def upload_late(run_folder: Storage, folder: Path, name: str) -> None:
        shutil.rmtree(gone, ignore_errors=True)  # by another machine that shares the folder
        upload(run_folder, folder, name)

    monkeypatch.setattr(Storage, "upload", upload_late)

    rescue_staged(run_folder, KEY)

    assert {file.split("/")[0] for file in files(run_folder)} == {"checkpoint_00000020_0001"}
    assert not staging_folder(KEY).exists()


def test_nothing_is_left_on_the_machine(run_folder: Storage):
    stage(0, "checkpoint_00000010_0001", is_marked=True)
    stage(1, "checkpoint_00000010_0001", is_marked=True)
    stage(0, "checkpoint_00000020_0001", is_marked=False)

    rescue_staged(run_folder, KEY)

    assert not staging_folder(KEY).exists()


def test_a_second_call_does_nothing(run_folder: Storage):
    stage(0, "checkpoint_00000010_0001", is_marked=True)
    rescue_staged(run_folder, KEY)
    run_folder.write_text("checkpoint_00000010_0001/data/of-0.txt", "written since")

    rescue_staged(run_folder, KEY)

    assert run_folder.read_text("checkpoint_00000010_0001/data/of-0.txt") == "written since"


def test_a_machine_without_anything_staged_does_nothing(run_folder: Storage):
    rescue_staged(run_folder, KEY)

    assert files(run_folder) == []


def test_another_run_s_staged_checkpoints_stay(run_folder: Storage):
    stage(0, "checkpoint_00000010_0001", is_marked=True, key="another")

    rescue_staged(run_folder, KEY)

    assert files(run_folder) == []
    assert staging_folder("another").exists()


def test_a_partly_uploaded_checkpoint_is_completed(run_folder: Storage):
    name = "checkpoint_00000010_0001"
    stage(0, name, is_marked=True)
    run_folder.write_text(f"{name}/data/of-0.txt", "torn")
    run_folder.write_text(f"{name}/slices-00007.safetensors", "of another machine")

    rescue_staged(run_folder, KEY)

    assert run_folder.read_text(f"{name}/data/of-0.txt") == name
    assert run_folder.read_text(f"{name}/slices-00007.safetensors") == "of another machine"
    assert run_folder.exists(f"{name}/slices-00000.safetensors")


def test_a_checkpoint_that_cannot_be_uploaded_stays_staged(tmp_path: Path):
    name = "checkpoint_00000010_0001"
    folder = stage(0, name, is_marked=True)
    (tmp_path / "storage").write_text("in the way")
    run_folder = Storage.open(str(tmp_path / "storage")).folder("reward-model")

    with pytest.raises(OSError, match="storage"):
        rescue_staged(run_folder, KEY)
    assert (folder / "slices-00000.safetensors").exists()

    (tmp_path / "storage").unlink()
    rescue_staged(run_folder, KEY)
    assert run_folder.read_text(f"{name}/data/of-0.txt") == name
    assert not staging_folder(KEY).exists()


def test_a_folder_is_unmarked_once_it_has_been_copied(run_folder: Storage):
    folder = stage(0, "checkpoint_00000010_0001", is_marked=False)
    mark_staged(folder)

    upload_staged(folder, run_folder, patience_s=0.0)

    assert run_folder.exists("checkpoint_00000010_0001/slices-00000.safetensors")
    assert not folder.with_suffix(STAGED).exists()
    assert folder.exists()  # its owner deletes it


def test_a_discarded_folder_is_deleted_with_its_marker(run_folder: Storage):
    folder = stage(0, "checkpoint_00000010_0001", is_marked=True)

    discard_staged(folder)
    discard_staged(folder)  # a missing folder is fine

    rescue_staged(run_folder, KEY)
    assert files(run_folder) == []
