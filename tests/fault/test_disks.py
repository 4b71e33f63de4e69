"""A disk that is full, a storage that fails for a while or for good, a small object store."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from outcomes import assert_same_outcome, result

from jobs import INJECT, Job, assert_tidy, command, finish, running, small_job

pytestmark = pytest.mark.slow


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory of a given size, which may be changed by mounting it again."""
    folder.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small disk needs more rights: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    storage = tmp_path_factory.mktemp("quiet")
    finish(small_job(storage, "quiet"), storage / "quiet.log")
    return storage / "quiet"


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(quiet: Path, tmp_path: Path) -> None:
    settings = small_job(quiet.parent, "full-disk")
    with (
        small_disk(tmp_path / "staging", "2m") as disk,
        running(settings, tmp_path / "full.log", TMPDIR=str(disk), RAY_TMPDIR="/tmp") as job,
    ):
        job.wait_for(lambda: "there is no checkpoint of step 5" in job.printed, "the warning")
        resize(disk, "500m")
        assert job.wait() == 0, job.printed
    assert_same_outcome(job.folder, quiet)
    assert result(job.folder)["checkpoints_not_taken"] >= 1
    assert "GB are free there" in job.printed


@contextmanager
def run_on_small_disk(
    tmp_path: Path, name: str, *, patience_s: float
) -> Iterator[tuple[Job, Path]]:
    """A run whose storage is full after its first checkpoint."""
    with small_disk(tmp_path / "storage", "500m") as disk:
        settings = small_job(disk, name)
        settings["checkpoint"]["storage_patience_s"] = patience_s
        with running(settings, tmp_path / f"{name}.log") as job:
            job.wait_for_checkpoint()
            used = sum(f.stat().st_blocks * 512 for f in disk.rglob("*") if f.is_file())
            resize(disk, str(used + 300_000))
            yield job, disk


def test_a_storage_that_fails_for_a_while_is_tried_again(quiet: Path, tmp_path: Path) -> None:
    with run_on_small_disk(tmp_path, "for-a-while", patience_s=300) as (job, disk):
        job.wait_for(lambda: "failed, retrying" in job.printed, "a failure")
        resize(disk, "500m")
        assert job.wait() == 0, job.printed
        assert_same_outcome(job.folder, quiet)
        assert_tidy(job.folder)
        assert len(result(job.folder)["attempts"]) == 1


def test_the_last_state_stays_here_where_a_storage_fails_for_good(
    quiet: Path, tmp_path: Path
) -> None:
    with run_on_small_disk(tmp_path, "for-good", patience_s=3) as (job, disk):
        assert job.wait() == 1, job.printed
        assert "could not be copied to" in job.printed
        kept = Path(job.printed.split("kept in ")[1].split(". Once")[0])
        assert (kept / "slices-00000.safetensors").is_file()
        resize(disk, "500m")
        with running(job.settings, tmp_path / "again.log") as again:
            assert again.wait() == 0, again.printed
            step = int(kept.name.split("_")[1])
            assert f"resumed from the checkpoint of step {step}" in again.printed
            assert_same_outcome(again.folder, quiet)
            assert not kept.exists()


def test_an_object_store_that_spills_changes_nothing(quiet: Path, tmp_path: Path) -> None:
    small = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(80 * 2**20)}
    spills = {"PYTHONPATH": INJECT, "FILLS_STORE": "1"}
    settings = small_job(quiet.parent, "spilling")
    with running(settings, tmp_path / "spilling.log", **small, **spills) as job:
        job.wait_for_steps_of_attempt(1)
        (raylet,) = job.find("raylet/raylet")
        session = next(arg for arg in command(raylet).split() if "session_dir=" in arg)
        spilled = Path(session.partition("=")[2])
        job.wait_for(lambda: list(spilled.glob("*spilled_objects*/*")), "spilled objects")
        assert job.wait() == 0, job.printed
        assert_same_outcome(job.folder, quiet)
