import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rm_ray.checkpoint import save as save_module
from rm_ray.checkpoint.find import find_checkpoint
from rm_ray.checkpoint.save import Checkpointer
from rm_ray.checkpoint.staging import STAGED, rescue_staged, staging_folder
from rm_ray.checkpoint.stored import StoredCheckpoints
from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.errors import TrainingError
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.storage import Storage

KEY = "7f3a"


class Uploads:
    """Collects reports, and uploads when the test asks for it."""

    def __init__(self) -> None:
        self.pending: list[tuple[Path, Callable[[Path], None]]] = []
        self.metrics: list[dict[str, float]] = []

    def report(
        self, metrics: dict[str, float], folder: Path, upload: Callable[[Path], None]
    ) -> None:
        self.metrics.append(metrics)
        self.pending.append((folder, upload))

    def run(self) -> None:
        while self.pending:
            folder, upload = self.pending.pop(0)
            upload(folder)
            shutil.rmtree(folder)


@pytest.fixture
def uploads() -> Uploads:
    return Uploads()


@pytest.fixture
def checkpointer(run_folder: Storage, make_engine, uploads: Uploads) -> Checkpointer:
    stored = StoredCheckpoints(run_folder=run_folder, config=CheckpointConfig(keep=2), attempt=4)
    return Checkpointer(
        run_folder=run_folder,
        run_key=KEY,
        engine=make_engine(),
        attempt=4,
        patience_s=0.0,
        stored=stored,
        report=uploads.report,
    )


def names(run_folder: Storage) -> list[str]:
    return sorted(list_checkpoints(run_folder))


def test_a_checkpoint_counts_once_it_is_copied(checkpointer, uploads, run_folder, content):
    checkpointer.save(content(2), {"eval/rm/loss": 0.5})
    assert uploads.metrics == [{"step": 2, "eval/rm/loss": 0.5}]
    assert names(run_folder) == []
    assert checkpointer.stored.last_step == 0
    uploads.run()
    checkpointer.finish()
    assert names(run_folder) == ["checkpoint_00000002_0004"]
    assert checkpointer.stored.last_step == 2
    found = find_checkpoint(run_folder, "plan")
    assert found is not None
    assert (found.manifest.step, found.manifest.metrics) == (2, {"eval/rm/loss": 0.5})


def test_older_checkpoints_are_deleted_only_after_the_newest_is_copied(
    checkpointer, uploads, run_folder, content
):
    for step in (2, 4, 6):
        checkpointer.save(content(step), {})
        uploads.run()
    assert names(run_folder) == [f"checkpoint_0000000{step}_0004" for step in (2, 4, 6)]
    checkpointer.finish()
    assert names(run_folder) == [f"checkpoint_0000000{step}_0004" for step in (4, 6)]


def test_a_save_waits_for_the_previous_checkpoint_and_keeps_beating(
    checkpointer, uploads, content, monkeypatch
):
    monkeypatch.setattr(save_module, "UPLOAD_S", 60)
    checkpointer.save(content(2), {})
    beats = []

    def beat() -> None:
        beats.append(None)
        if len(beats) == 2:
            uploads.run()

    checkpointer.on_wait = beat
    assert checkpointer.save(content(4), {}) >= 2.0
    assert len(beats) == 2


def test_a_part_that_is_not_copied_in_time_is_an_error(checkpointer, content, monkeypatch):
    monkeypatch.setattr(save_module, "UPLOAD_S", 0.5)
    checkpointer.save(content(2), {})
    with pytest.raises(TimeoutError, match="checkpoint_00000002_0004 was not copied within 0 s"):
        checkpointer.save(content(4), {})


@pytest.mark.parametrize("broken", ["write_content", "mark_staged"])
def test_a_part_that_cannot_be_staged_skips_only_this_checkpoint(
    broken, checkpointer, uploads, run_folder, content, monkeypatch, caplog
):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save_module, broken, fail)
        checkpointer.save(content(2), {})
    assert uploads.pending == []
    assert checkpointer.num_failed == 1
    assert "there is no checkpoint of step 2, training continues: rank 0 cannot write" in (
        caplog.text
    )
    assert "Free some space, or set TMPDIR to a larger disk" in caplog.text
    staged = staging_folder(KEY) / "rank-0"
    assert not [path for path in staged.rglob("*") if path.is_file()]
    checkpointer.save(content(4), {})
    uploads.run()
    checkpointer.finish()
    assert names(run_folder) == ["checkpoint_00000004_0004"]


def test_a_checkpoint_that_cannot_be_copied_stays_staged_for_the_next_command(
    checkpointer, uploads, run_folder, content
):
    checkpointer.save(content(2), {})
    Path(run_folder.path).parent.mkdir(parents=True, exist_ok=True)
    Path(run_folder.path).write_text("in the way")
    with pytest.raises(TrainingError, match=r"could not be copied to .* It is kept in"):
        uploads.run()
    staged = staging_folder(KEY) / "rank-0" / "checkpoint_00000002_0004"
    assert staged.with_suffix(STAGED).exists()
    Path(run_folder.path).unlink()
    rescue_staged(run_folder, KEY)
    found = find_checkpoint(run_folder, "plan")
    assert found is not None and found.manifest.step == 2
