import os
import tempfile
from pathlib import Path

import pytest

from rm_ray.errors import InputError
from rm_ray.local_home import local_home, private_folder


def test_the_folder_is_private_to_this_user(tmp_path: Path):
    home = private_folder(tmp_path / "shared")
    assert home.parent == tmp_path / "shared"
    assert home.stat().st_mode & 0o777 == 0o700
    assert private_folder(tmp_path / "shared") == home


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert local_home() == tmp_path / f"rm_ray-{os.getuid()}"

    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(InputError, match="rm_ray-4711 belongs to another user"):
        local_home()  # created by us, before the user changed


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path):
    private_folder(tmp_path).chmod(0o770)
    with pytest.raises(InputError, match="others may write to it; delete it, or set TMPDIR"):
        private_folder(tmp_path)


def test_a_link_in_its_place_is_refused(tmp_path: Path):
    home = private_folder(tmp_path)
    home.rmdir()
    (tmp_path / "elsewhere").mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="belongs to another user"):
        private_folder(tmp_path)


def test_a_folder_that_cannot_be_created_is_reported_with_tmpdir(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set TMPDIR to a folder"):
        local_home()
