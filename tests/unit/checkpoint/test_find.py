from pathlib import Path

import pytest
from small_checkpoint import write_checkpoint

from rm_ray.checkpoint.find import find_checkpoint
from rm_ray.errors import InputError
from rm_ray.storage import Storage


@pytest.fixture
def run_folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


def test_the_newest_intact_checkpoint_is_found(
    run_folder: Storage, caplog: pytest.LogCaptureFixture
):
    write_checkpoint(run_folder, 5)
    write_checkpoint(run_folder, 10)
    newest = write_checkpoint(run_folder, 15)
    (newest / "slices-00000.safetensors").write_bytes(b"")

    found = find_checkpoint(run_folder, "plan")

    assert found is not None
    assert (found.name, found.manifest.step) == ("checkpoint_00000010_0001", 10)
    assert f"checkpoint {newest} is not used: slices-00000.safetensors has 0" in caplog.text


def test_a_new_run_has_no_checkpoint(run_folder: Storage):
    assert find_checkpoint(run_folder, "plan") is None
    Path(run_folder.join("checkpoint_00000005_0001")).mkdir()
    assert find_checkpoint(run_folder, "plan") is None


def test_a_checkpoint_from_other_data_is_refused(run_folder: Storage):
    write_checkpoint(run_folder, 5)
    with pytest.raises(InputError, match="other pairs, seed or batch size"):
        find_checkpoint(run_folder, "another plan")


@pytest.mark.parametrize("error", [OSError("no route"), ConnectionError(), PermissionError()])
def test_a_failing_storage_ends_the_search(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    write_checkpoint(run_folder, 5)

    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(Storage, "read_text", fail)

    with pytest.raises(type(error)):
        find_checkpoint(run_folder, "plan")
