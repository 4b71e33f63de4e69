"""Which checkpoints are kept, and which of them become versions on the Hub."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoint import described

from rm_ray.config.sections.checkpoint import LIST_METRICS
from rm_ray.config.sections.hub import HubConfig
from rm_ray.runs.checkpoint_names import checkpoint_name
from rm_ray.runs.manifest import Checkpoint, Manifest
from rm_ray.runs.retention import (
    HubHold,
    badness,
    best_step,
    choose_held,
    choose_kept,
    find_wanted,
    kept_names,
    rank_by,
    wanted_steps,
)
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage

LOSS = "eval/rm/loss"


def found(step: int, loss: float) -> Checkpoint:
    return described(step, {LOSS: loss, "eval/rm/accuracy": 1 - loss})


@pytest.mark.parametrize(
    ("keep", "best_by", "steps"),
    [
        (1, None, [4]),
        (2, None, [4, 3]),
        (9, None, [4, 3, 2, 1]),
        (2, "eval/rm/loss", [4, 2]),
        (2, "eval/rm/accuracy", [4, 2]),
        (3, "eval/rm/loss", [4, 2, 1]),
        (4, "eval/rm/loss", [4, 3, 2, 1]),
    ],
)
def test_the_best_and_the_newest_are_kept(keep: int, best_by: str | None, steps: list[int]):
    intact = [found(1, 0.3), found(2, 0.1), found(3, 0.4), found(4, 0.5)]
    kept = choose_kept(intact, keep=keep, best_by=best_by)
    assert [checkpoint.manifest.step for checkpoint in kept] == steps
    assert choose_kept(intact[::-1], keep=keep, best_by=best_by) == kept


def without_metrics(step: int) -> Checkpoint:
    intact = found(step, 0.0)
    return replace(intact, manifest=replace(intact.manifest, metrics={}))


@pytest.mark.parametrize("metric", ["eval/rm/loss", "eval/rm/accuracy"])
def test_a_missing_or_non_finite_metric_ranks_worst(metric: str):
    intact = [found(1, math.nan), found(2, 0.9), without_metrics(3), found(4, 0.1)]
    intact.append(found(5, math.inf if metric.endswith("loss") else -math.inf))

    for order in (intact, intact[::-1]):
        ranked = [checkpoint.manifest.step for checkpoint in rank_by(order, metric)]
        assert ranked[:2] == [4, 2]
        assert ranked[2:] == [5, 3, 1]  # the newest of them first


def test_the_earliest_of_equal_checkpoints_is_the_best_in_any_order():
    intact = [found(1, 0.9), found(2, 0.5), found(3, 0.5)]
    for order in (intact, intact[::-1]):
        assert [c.manifest.step for c in rank_by(order, "eval/rm/loss")] == [2, 3, 1]


def test_without_the_metric_the_newest_checkpoint_is_kept():
    intact = [without_metrics(step) for step in (1, 2, 3)]

    kept = choose_kept(intact, keep=2, best_by="eval/rm/loss")

    assert [checkpoint.manifest.step for checkpoint in kept] == [3, 2]


def checkpoint(step: int, loss: float = 0.5, *, attempt: int = 1) -> Checkpoint:
    return described(step, {LOSS: loss}, attempt=attempt)


def version(step: int, loss: float = 0.5, state: str = "published") -> Version:
    return Version(step=step, tag=f"step-{step:08d}", state=state, metrics={LOSS: loss})


def wanted(checkpoints, versions=(), *, every="checkpoint", best_by=LOSS, last_step=100):
    hub = HubConfig(repo_id="me/model", every=every)
    known = {each.step: each for each in versions}
    found = find_wanted(checkpoints, known, hub, best_by=best_by, last_step=last_step)
    return [each.name for each in found]


def test_each_checkpoint_is_wanted_once_oldest_first():
    checkpoints = [checkpoint(30), checkpoint(10), checkpoint(20)]
    assert wanted(checkpoints, [version(20)]) == [checkpoint_name(10, 1), checkpoint_name(30, 1)]


@pytest.mark.parametrize("state", ["waiting", "published", "refused"])
def test_a_step_that_has_a_version_in_any_state_is_not_wanted(state: str):
    assert wanted([checkpoint(10)], [version(10, state=state)]) == []


def test_the_last_step_is_left_to_the_end_of_the_run():
    assert wanted([checkpoint(10), checkpoint(100)]) == [checkpoint_name(10, 1)]


def test_the_newer_attempt_at_a_repeated_step_is_wanted():
    again = [checkpoint(10, attempt=2), checkpoint(10, attempt=1)]
    assert wanted(again) == [checkpoint_name(10, 2)]


def test_nothing_is_wanted_before_the_end_with_every_final():
    assert wanted([checkpoint(10)], every="final") == []


def test_checkpoints_better_than_all_earlier_ones_are_wanted():
    losses = {10: 0.5, 20: 0.6, 30: 0.4, 40: 0.4, 50: math.nan, 60: 0.1}
    checkpoints = [checkpoint(step, loss) for step, loss in losses.items()]
    names = [checkpoint_name(step, 1) for step in (10, 30, 60)]
    assert wanted(checkpoints, every="best") == names


def test_versions_without_checkpoints_still_count_as_the_best_so_far():
    assert wanted([checkpoint(20, 0.6)], [version(10, 0.5)], every="best") == []
    assert wanted([checkpoint(20, 0.4)], [version(10, 0.5)], every="best") != []


@given(
    losses=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    seen=st.lists(st.integers(1, 12), max_size=12),
)
def test_looking_often_finds_the_same_versions_as_looking_once(losses, seen):
    """The final versions do not depend on when the mirror looks."""
    checkpoints = [checkpoint(10 * (i + 1), loss) for i, loss in enumerate(losses)]
    versions: list[Version] = []
    for count in [*sorted(seen), len(checkpoints)]:
        for name in wanted(checkpoints[:count], versions, every="best", last_step=1000):
            found = next(each for each in checkpoints if each.name == name)
            versions.append(version(found.manifest.step, found.manifest.metrics[LOSS]))
    once = wanted(checkpoints, every="best", last_step=1000)
    assert [checkpoint_name(each.step, 1) for each in versions] == once


def test_wanted_checkpoints_are_held_while_there_is_room():
    files = {"slices.safetensors": {"size": 1_000}, "state.json": {"size": 24}}
    manifest = Manifest(step=10, plan_fingerprint="plan", metrics={}, files=files)
    wanted = [Checkpoint(name=checkpoint_name(10, 1), manifest=manifest)]
    assert choose_held(wanted, None) == choose_held(wanted, 2_048) == {wanted[0].name}
    assert choose_held(wanted, 2_047) == set()
    assert choose_held([], 0) == set()


def test_a_checkpoint_without_reference_rewards_is_not_wanted():
    found = checkpoint(10)
    older = replace(found, manifest=replace(found.manifest, files={}))
    assert wanted([older]) == []


def test_checkpoints_that_the_hub_needs_are_kept_along_with_the_newest():
    intact = [found(step, 0.5) for step in (1, 2, 3, 4)]
    kept = kept_names(intact, keep=1, best_by=None, held={checkpoint_name(2, 1)})
    assert kept == {checkpoint_name(2, 1), checkpoint_name(4, 1)}
    assert kept_names(intact, keep=1, best_by=None) == {checkpoint_name(4, 1)}


def test_a_low_loss_and_a_high_accuracy_are_good():
    assert badness({LOSS: 0.25}, LOSS) == 0.25
    assert badness({"eval/rm/accuracy": 0.75}, "eval/rm/accuracy") == -0.75
    for name in LIST_METRICS:
        assert badness({f"eval/rm/{name}": -0.25}, f"eval/rm/{name}") == 0.25
    assert badness({LOSS: math.nan}, LOSS) == badness({}, LOSS) == math.inf


@pytest.mark.parametrize(
    ("every", "best_by", "steps"),
    [
        ("final", LOSS, []),
        ("checkpoint", LOSS, [10, 40]),
        ("best", LOSS, [10]),
        ("best", None, [10, 40]),
    ],
)
def test_wanted_steps_follow_from_metrics_the_setting_and_published_versions(every, best_by, steps):
    candidates = {40: {LOSS: 0.3}, 10: {LOSS: 0.5}, 20: {LOSS: 0.9}}
    versions = {20: {LOSS: 0.2}}
    assert wanted_steps(candidates, versions, every=every, best_by=best_by) == steps


def test_without_a_metric_the_last_model_is_the_best():
    result = {"steps": 30, "best_checkpoint": "/runs/mine/checkpoint_00000020_0001"}
    assert best_step(result, best_by=LOSS) == 20
    assert best_step(result, best_by=None) == 30
    assert best_step({"steps": 30, "best_checkpoint": None}, best_by=LOSS) == 30


def test_checkpoints_are_held_until_they_have_versions(tmp_path: Path):
    run_folder = Storage.open(str(tmp_path))
    intact = [checkpoint(10), checkpoint(20), checkpoint(30)]
    hub = HubConfig(repo_id="me/model", every="checkpoint")
    hold = HubHold(run_folder=run_folder, hub=hub, best_by=None, last_step=30)
    assert hold.names(intact) == {checkpoint_name(10, 1), checkpoint_name(20, 1)}

    Versions(run_folder=run_folder, repo_id="me/model").write(version(10))

    assert hold.names(intact) == {checkpoint_name(20, 1)}


def test_without_a_repository_nothing_is_held(tmp_path: Path):
    run_folder = Storage.open(str(tmp_path))
    hold = HubHold(run_folder=run_folder, hub=HubConfig(), best_by=None, last_step=30)
    assert hold.names([checkpoint(10)]) == set()


def test_a_nearly_full_storage_holds_nothing_and_warns(tmp_path, monkeypatch, caplog):
    run_folder = Storage.open(str(tmp_path))
    monkeypatch.setattr(Storage, "free_bytes", lambda _: 1)
    hub = HubConfig(repo_id="me/model", every="checkpoint")
    hold = HubHold(run_folder=run_folder, hub=hub, best_by=None, last_step=30)
    assert hold.names([checkpoint(10)]) == set()
    assert "1 checkpoints may be deleted before they are published" in caplog.text


def test_only_a_loss_is_better_when_lower():
    assert badness({"eval/chat/loss": 2.0}, "eval/chat/loss") == 2.0
    assert badness({"eval/chat/score": 2.0}, "eval/chat/score") == -2.0
    assert badness({"eval/loss/accuracy": 2.0}, "eval/loss/accuracy") == -2.0
    assert badness({"eval/chat/accuracy_on/loss": 2.0}, "eval/chat/accuracy_on/loss") == -2.0
