"""Where a local Ray keeps its sockets, in folders that are long or another user's."""

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
    """A new folder with a short path; Python's own are long."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def bind(path: Path) -> None:
    """Make a socket as deep as Ray's deepest."""
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def test_a_folder_with_room_for_sockets_is_left_to_ray(short: Path):
    assert choose_ray_folder() is None
    assert os.environ["TMPDIR"] == str(short)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_that_is_too_long_gets_a_short_name(short: Path, variable, monkeypatch):
    job = short / "slurm_job_folder_of_a_user" / ("j" * LONGEST)
    job.mkdir(parents=True)
    monkeypatch.setenv(variable, str(job))
    with pytest.raises(OSError, match="too long"):
        bind(job / "ray" / BELOW)
    for _ in range(2):  # also where the link is there
        monkeypatch.setenv(variable, str(job))
        assert choose_ray_folder() is None
    place = Path(get_default_ray_temp_dir())
    assert len(str(place.parent)) <= LONGEST
    assert place.resolve() == job / "ray"
    bind(place / "again" / BELOW.removeprefix("session_"))


def test_the_longest_name_that_is_left_alone_has_room_for_a_socket(short: Path, monkeypatch):
    exact = short / ("e" * (LONGEST - len(str(short)) - 1))
    monkeypatch.setenv("TMPDIR", str(exact))
    assert choose_ray_folder() is None
    assert os.environ["TMPDIR"] == str(exact)
    bind(exact / "ray" / BELOW)
    assert len(str(exact / "ray" / BELOW)) == 107


def test_where_another_user_s_ray_was_first_it_is_a_folder_of_this_user(short: Path, monkeypatch):
    monkeypatch.setattr(ray_folder, "_is_writable", lambda folder: folder.parent != short)
    assert choose_ray_folder() == str(short / f"rm_ray-{os.getuid()}" / "ray")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no folder from anyone")
def test_where_there_is_no_folder_the_user_is_told_which(short: Path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    with pytest.raises(InputError, match=r"no sockets and logs in '/proc/ray': .*set RAY_TMPDIR"):
        choose_ray_folder()
