"""The folder of a local Ray's sockets, if the default is too long or another user's."""

import os
import socket
import sys
from pathlib import Path

import pytest
from ray._common.utils import get_default_ray_temp_dir

from rm_ray.cluster import ray_folder
from rm_ray.cluster.ray_folder import LONGEST, SOCKET, choose_ray_folder
from rm_ray.errors import InputError

BELOW = SOCKET.removeprefix("/ray/")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder with a short path; those of pytest are too long."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def bind(path: Path) -> None:
    """Create a socket with the longest path that Ray uses."""
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def test_a_folder_with_room_for_sockets_is_left_to_ray(short: Path):
    assert choose_ray_folder() is None
    assert os.environ["TMPDIR"] == str(short)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_with_too_long_a_path_gets_a_short_link(short: Path, variable, monkeypatch):
    job = short / "slurm_job_folder_of_a_user" / ("j" * LONGEST)
    job.mkdir(parents=True)
    monkeypatch.setenv(variable, str(job))
    with pytest.raises(OSError, match="too long"):
        bind(job / "ray" / BELOW)
    for _ in range(2):  # also if the link exists
        monkeypatch.setenv(variable, str(job))
        assert choose_ray_folder() is None
    place = Path(get_default_ray_temp_dir())
    assert len(str(place.parent)) <= LONGEST
    assert place.resolve() == job / "ray"
    bind(place / "again" / BELOW.removeprefix("session_"))


def test_the_longest_allowed_folder_has_room_for_a_socket(short: Path, monkeypatch):
    exact = short / ("e" * (LONGEST - len(str(short)) - 1))
    monkeypatch.setenv("TMPDIR", str(exact))
    assert choose_ray_folder() is None
    assert os.environ["TMPDIR"] == str(exact)
    bind(exact / "ray" / BELOW)
    assert len(str(exact / "ray" / BELOW)) == 107


def test_if_another_user_owns_the_folder_a_private_one_is_used(short: Path, monkeypatch):
    monkeypatch.setattr(ray_folder, "_is_writable", lambda folder: folder.parent != short)
    assert choose_ray_folder() == str(short / f"rm_ray-{os.getuid()}" / "ray")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no folder from anyone")
def test_an_unusable_folder_is_named_in_the_error(short: Path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    with pytest.raises(
        InputError, match=r"cannot keep sockets and logs in '/proc/ray': .*set RAY_TMPDIR"
    ):
        choose_ray_folder()
