from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_checkpoint import write_checkpoint

from rm_ray.checkpoint.stored import StoredCheckpoints
from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.errors import TrainingError
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.manifest import Checkpoint, read_manifest
from rm_ray.storage import Storage


@pytest.fixture
def stored(run_folder: Storage) -> StoredCheckpoints:
    config = CheckpointConfig(keep=2, keep_best_by="eval/rm/loss")
    return StoredCheckpoints(run_folder=run_folder, config=config, attempt=2)


def written(run_folder: Storage, step: int, loss: float, *, attempt: int = 2) -> Checkpoint:
    name = write_checkpoint(run_folder, step, attempt=attempt).name
    manifest = read_manifest(run_folder, name)
    assert manifest is not None
    manifest = replace(manifest, metrics={"eval/rm/loss": loss})
    Path(run_folder.join(f"{name}/manifest.json")).write_text(manifest.to_json())
    return Checkpoint(name=name, manifest=manifest)


def steps(run_folder: Storage) -> list[int]:
    return sorted(int(name.split("_")[1]) for name in list_checkpoints(run_folder))


def test_without_checkpoints_there_is_no_last_or_best(stored: StoredCheckpoints):
    stored.prune()
    assert (stored.last, stored.best, stored.last_step) == (None, None, 0)


def test_the_best_and_the_newest_stay(stored: StoredCheckpoints, run_folder: Storage):
    for step, loss in ((2, 0.5), (4, 0.3), (6, 0.4), (8, 0.9)):
        stored.add(written(run_folder, step, loss))
    stored.prune()
    assert steps(run_folder) == [4, 8]
    assert stored.last == run_folder.join("checkpoint_00000008_0002")
    assert stored.best == run_folder.join("checkpoint_00000004_0002")
    assert stored.last_step == 8


def test_without_a_metric_the_newest_is_the_best(stored: StoredCheckpoints, run_folder: Storage):
    stored.config = CheckpointConfig(keep=2)
    for step in (2, 4, 6):
        stored.add(written(run_folder, step, 0.5))
    stored.prune()
    assert steps(run_folder) == [4, 6]
    assert stored.best == stored.last


def test_damaged_and_unfinished_checkpoints_are_deleted_unless_a_later_attempt_wrote_them(
    stored: StoredCheckpoints, run_folder: Storage
):
    (write_checkpoint(run_folder, 2, attempt=1) / "manifest.json").unlink()
    write_checkpoint(run_folder, 3, attempt=3)
    stored.add(written(run_folder, 4, 0.5))
    stored.prune()
    assert steps(run_folder) == [3, 4]


def test_a_held_checkpoint_stays(stored: StoredCheckpoints, run_folder: Storage):
    stored.find_held = lambda intact: {one.name for one in intact if one.manifest.step == 2}
    for step, loss in ((2, 0.9), (4, 0.3), (6, 0.4), (8, 0.8)):
        stored.add(written(run_folder, step, loss))
    stored.prune()
    assert steps(run_folder) == [2, 4, 8]


def test_a_resumed_attempt_knows_the_older_intact_checkpoints(
    stored: StoredCheckpoints, run_folder: Storage
):
    written(run_folder, 2, 0.3, attempt=1)
    (Path(run_folder.join(written(run_folder, 4, 0.1, attempt=1).name)) / "manifest.json").unlink()
    found = written(run_folder, 6, 0.5, attempt=1)
    written(run_folder, 8, 0.5, attempt=1)  # damaged: otherwise, this attempt would resume from it
    stored.resume(found)
    assert [one.manifest.step for one in stored.intact] == [6, 2]
    assert stored.last_step == 6
    stored.add(written(run_folder, 9, 0.9))
    stored.prune()
    assert steps(run_folder) == [2, 9]


def test_an_incomplete_newest_checkpoint_keeps_the_others_and_explains_why(
    stored: StoredCheckpoints, run_folder: Storage
):
    for step in (2, 4, 6):
        stored.add(written(run_folder, step, 0.5))
    (Path(run_folder.join(stored.intact[-1].name)) / "slices-00000.safetensors").unlink()
    with pytest.raises(TrainingError, match="not the same folder on all machines"):
        stored.prune()
    assert steps(run_folder) == [2, 4, 6]


def test_a_failing_storage_keeps_old_checkpoints_for_now(
    stored: StoredCheckpoints, run_folder: Storage, monkeypatch: pytest.MonkeyPatch, caplog
):
    for step in (2, 4, 6):
        stored.add(written(run_folder, step, 0.5))

    def fail(*_: object) -> None:
        raise OSError("away")

    monkeypatch.setattr(Storage, "delete", fail)
    stored.prune()
    assert steps(run_folder) == [2, 4, 6]
    assert "keeping old checkpoints for now: away" in caplog.text


def test_metrics_that_arrive_late_decide_what_stays(stored: StoredCheckpoints, run_folder: Storage):
    losses = {2: 0.5, 4: 0.3, 6: 0.4}

    def add_metrics(intact: Sequence[Checkpoint]) -> list[Checkpoint]:
        return [
            replace(one, manifest=replace(one.manifest, metrics={"eval/rm/loss": losses[step]}))
            if (step := one.manifest.step) in losses
            else one
            for one in intact
        ]

    stored.add_metrics = add_metrics
    for step in (2, 4, 6, 8):
        name = write_checkpoint(run_folder, step, attempt=2).name
        manifest = read_manifest(run_folder, name)
        assert manifest is not None
        stored.add(Checkpoint(name=name, manifest=manifest))
    stored.prune()
    assert steps(run_folder) == [4, 8]
    assert stored.best == run_folder.join("checkpoint_00000004_0002")
