"""Which checkpoints become versions, and the records of those that have."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.config.train_config import HubConfig
from rm_ray.runs.attempts import checkpoint_name
from rm_ray.runs.manifest import FoundCheckpoint, Manifest
from rm_ray.runs.versions import Version, Versions, choose_held, find_wanted
from rm_ray.storage import Storage

LOSS = "eval/rm/loss"


def checkpoint(step: int, loss: float = 0.5, *, attempt: int = 1) -> FoundCheckpoint:
    files = {"probes.json": {"size": 1}}
    manifest = Manifest(step=step, plan_fingerprint="plan", metrics={LOSS: loss}, files=files)
    return FoundCheckpoint(name=checkpoint_name(step, attempt), manifest=manifest)


def version(step: int, loss: float = 0.5, state: str = "published") -> Version:
    return Version(step=step, tag=f"step-{step:08d}", state=state, metrics={LOSS: loss})


def wanted(checkpoints, versions=(), *, every="checkpoint", best_by=LOSS, last_step=100):
    hub = HubConfig(repo_id="me/model", every=every)
    known = {each.step: each for each in versions}
    found = find_wanted(checkpoints, known, hub, best_by=best_by, last_step=last_step)
    return [each.name for each in found]


def test_each_checkpoint_is_wanted_once_and_the_oldest_first():
    checkpoints = [checkpoint(30), checkpoint(10), checkpoint(20)]
    assert wanted(checkpoints, [version(20)]) == [checkpoint_name(10, 1), checkpoint_name(30, 1)]


@pytest.mark.parametrize("state", ["waiting", "published", "refused"])
def test_a_step_that_has_a_version_in_any_state_is_not_wanted(state: str):
    assert wanted([checkpoint(10)], [version(10, state=state)]) == []


def test_the_last_step_is_left_to_the_end_of_the_run():
    assert wanted([checkpoint(10), checkpoint(100)]) == [checkpoint_name(10, 1)]


def test_of_a_step_taken_twice_the_newer_attempt_is_wanted():
    again = [checkpoint(10, attempt=2), checkpoint(10, attempt=1)]
    assert wanted(again) == [checkpoint_name(10, 2)]


def test_at_the_end_alone_nothing_is_wanted_before():
    assert wanted([checkpoint(10)], every="final") == []


def test_better_ones_than_all_before_are_wanted():
    losses = {10: 0.5, 20: 0.6, 30: 0.4, 40: 0.4, 50: math.nan, 60: 0.1}
    checkpoints = [checkpoint(step, loss) for step, loss in losses.items()]
    names = [checkpoint_name(step, 1) for step in (10, 30, 60)]
    assert wanted(checkpoints, every="best") == names


def test_versions_whose_checkpoints_are_gone_are_still_the_best_so_far():
    assert wanted([checkpoint(20, 0.6)], [version(10, 0.5)], every="best") == []
    assert wanted([checkpoint(20, 0.4)], [version(10, 0.5)], every="best") != []


@given(
    losses=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    seen=st.lists(st.integers(1, 12), max_size=12),
)
def test_looking_often_gives_the_versions_that_looking_once_gives(losses, seen):
    """Whenever the mirror looks, in the end the versions are the same."""
    checkpoints = [checkpoint(10 * (i + 1), loss) for i, loss in enumerate(losses)]
    versions: list[Version] = []
    for count in [*sorted(seen), len(checkpoints)]:
        for name in wanted(checkpoints[:count], versions, every="best", last_step=1000):
            found = next(each for each in checkpoints if each.name == name)
            versions.append(version(found.manifest.step, found.manifest.metrics[LOSS]))
    once = wanted(checkpoints, every="best", last_step=1000)
    assert [checkpoint_name(each.step, 1) for each in versions] == once


def test_what_is_wanted_is_held_while_there_is_room():
    files = {"slices.safetensors": {"size": 1_000}, "state.json": {"size": 24}}
    manifest = Manifest(step=10, plan_fingerprint="plan", metrics={}, files=files)
    wanted = [FoundCheckpoint(name=checkpoint_name(10, 1), manifest=manifest)]
    assert choose_held(wanted, None) == choose_held(wanted, 2_048) == {wanted[0].name}
    assert choose_held(wanted, 2_047) == set()
    assert choose_held([], 0) == set()


def test_a_checkpoint_of_older_code_cannot_be_compared_and_is_not_wanted():
    found = checkpoint(10)
    older = replace(found, manifest=replace(found.manifest, files={}))
    assert wanted([older]) == []


def test_a_record_that_is_unreadable_is_left_out(tmp_path: Path, caplog):
    versions = Versions(run_folder=Storage.open(str(tmp_path)), repo_id="me/model")
    versions.write(version(20))
    versions.folder.write_text("step-00000010.json", "")
    versions.folder.write_text("step-00000030.json", '{"step": 30, "of": "newer code"}')
    assert versions.read() == {20: version(20)}
    assert caplog.text.count("is unreadable, and left out") == 2


def test_records_are_read_again(tmp_path: Path):
    versions = Versions(run_folder=Storage.open(str(tmp_path)), repo_id="me/model")
    assert versions.read() == {}
    assert versions.main is None
    for each in (version(10, state="waiting"), version(20)):
        versions.write(each)
    versions.write_main("step-00000020")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"weights")
    versions.keep_files(10, tmp_path / "files")
    assert versions.read() == {10: version(10, state="waiting"), 20: version(20)}
    assert versions.main == "step-00000020"
    assert versions.files(10).read_text("model.safetensors") == "weights"
    versions.delete_files(10)
    versions.delete_files(20)
    assert not versions.folder.exists("step-00000010")
    other = Versions(run_folder=Storage.open(str(tmp_path)), repo_id="me/other")
    assert other.read() == {}
