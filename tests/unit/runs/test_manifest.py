import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from rm_ray.errors import InputError
from rm_ray.runs.attempts import checkpoint_name, list_checkpoints
from rm_ray.runs.manifest import (
    MANIFEST,
    FoundCheckpoint,
    Manifest,
    choose_kept,
    describe_file,
    find_checkpoint,
    find_fault,
    rank_by,
    read_manifest,
)
from rm_ray.storage import Storage


@pytest.fixture
def run_folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


def write_checkpoint(run_folder: Storage, step: int, *, attempt: int = 1) -> Path:
    folder = Path(run_folder.join(checkpoint_name(step, attempt)))
    (folder / "data").mkdir(parents=True)
    (folder / "slices-00000.safetensors").write_bytes(bytes(range(256)) * 10)
    (folder / "data" / "trained_pairs.npz").write_bytes(b"ledger of %d" % step)
    files = {
        str(path.relative_to(folder)): describe_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = Manifest(step=step, plan_fingerprint="plan", metrics={}, files=files)
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def fault_of(run_folder: Storage, folder: Path) -> str | None:
    return find_fault(run_folder, folder.name, read_manifest(run_folder, folder.name))


def test_an_untouched_checkpoint_has_no_fault(run_folder: Storage):
    assert fault_of(run_folder, write_checkpoint(run_folder, 5)) is None


def test_a_flipped_bit_is_found(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    path = folder / "slices-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert fault_of(run_folder, folder) == (
        "slices-00000.safetensors does not have the checksum of its manifest"
    )


def test_checksums_are_shared_among_ranks(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    (folder / "slices-00000.safetensors").write_bytes(bytes(2560))
    manifest = read_manifest(run_folder, folder.name)
    faults = [
        find_fault(run_folder, folder.name, manifest, share=rank, shares=2) for rank in range(2)
    ]
    assert [fault is None for fault in faults].count(False) == 1


def test_without_shares_only_sizes_are_compared(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    path = folder / "slices-00000.safetensors"
    manifest = read_manifest(run_folder, folder.name)

    path.write_bytes(bytes(2560))
    assert find_fault(run_folder, folder.name, manifest, shares=0) is None

    path.write_bytes(bytes(2559))
    told = "slices-00000.safetensors has 2559 bytes instead of 2560"
    assert find_fault(run_folder, folder.name, manifest, shares=0) == told

    path.unlink()
    told = "slices-00000.safetensors is missing"
    assert find_fault(run_folder, folder.name, manifest, shares=0) == told


def test_a_truncated_file_is_found(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    path = folder / "data" / "trained_pairs.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert fault_of(run_folder, folder) == "data/trained_pairs.npz has 10 bytes instead of 11"


def test_a_missing_file_is_found(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    (folder / "data" / "trained_pairs.npz").unlink()
    assert fault_of(run_folder, folder) == "data/trained_pairs.npz is missing"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', None])
def test_a_checkpoint_without_a_manifest_does_not_count(run_folder: Storage, content: str | None):
    folder = write_checkpoint(run_folder, 5)
    if content is None:
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text(content)
    assert fault_of(run_folder, folder) == "manifest.json is missing or unreadable"


@pytest.mark.parametrize("error", [OSError("no route"), ConnectionError(), PermissionError()])
def test_a_storage_that_does_not_answer_says_nothing_of_a_checkpoint(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    folder = write_checkpoint(run_folder, 5)

    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(Storage, "read_text", fail)

    with pytest.raises(type(error)):
        read_manifest(run_folder, folder.name)
    with pytest.raises(type(error)):
        find_checkpoint(run_folder, "plan")


def test_the_newest_whole_checkpoint_is_found(
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


def test_there_may_be_no_checkpoint(run_folder: Storage):
    assert find_checkpoint(run_folder, "plan") is None
    Path(run_folder.join("checkpoint_00000005_0001")).mkdir()
    assert find_checkpoint(run_folder, "plan") is None


def test_a_checkpoint_of_other_data_is_refused(run_folder: Storage):
    write_checkpoint(run_folder, 5)
    with pytest.raises(InputError, match="other pairs, seed or batch size"):
        find_checkpoint(run_folder, "another plan")


def test_checkpoints_are_listed_by_step_and_attempt(run_folder: Storage):
    for step, attempt in [(100, 1), (5, 3), (20, 2), (20, 10)]:
        write_checkpoint(run_folder, step, attempt=attempt)
    assert list_checkpoints(run_folder) == [
        "checkpoint_00000100_0001",
        "checkpoint_00000020_0010",
        "checkpoint_00000020_0002",
        "checkpoint_00000005_0003",
    ]


def found(step: int, loss: float) -> FoundCheckpoint:
    metrics = {"eval/rm/loss": loss, "eval/rm/accuracy": 1 - loss}
    manifest = Manifest(step=step, plan_fingerprint="plan", metrics=metrics, files={})
    return FoundCheckpoint(name=checkpoint_name(step, 1), manifest=manifest)


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
    whole = [found(1, 0.3), found(2, 0.1), found(3, 0.4), found(4, 0.5)]
    kept = choose_kept(whole, keep=keep, best_by=best_by)
    assert [checkpoint.manifest.step for checkpoint in kept] == steps
    assert choose_kept(whole[::-1], keep=keep, best_by=best_by) == kept


def without_metrics(step: int) -> FoundCheckpoint:
    whole = found(step, 0.0)
    return replace(whole, manifest=replace(whole.manifest, metrics={}))


@pytest.mark.parametrize("metric", ["eval/rm/loss", "eval/rm/accuracy"])
def test_a_metric_that_is_missing_or_no_number_is_the_worst(metric: str):
    whole = [found(1, math.nan), found(2, 0.9), without_metrics(3), found(4, 0.1)]
    whole.append(found(5, math.inf if metric.endswith("loss") else -math.inf))

    for order in (whole, whole[::-1]):
        ranked = [checkpoint.manifest.step for checkpoint in rank_by(order, metric)]
        assert ranked[:2] == [4, 2]
        assert ranked[2:] == [5, 3, 1]  # the newest of them first


def test_of_equals_the_earliest_is_the_best_in_whatever_order_they_are_found():
    whole = [found(1, 0.9), found(2, 0.5), found(3, 0.5)]
    for order in (whole, whole[::-1]):
        assert [c.manifest.step for c in rank_by(order, "eval/rm/loss")] == [2, 3, 1]


def test_of_checkpoints_without_a_metric_the_newest_is_kept():
    whole = [without_metrics(step) for step in (1, 2, 3)]

    kept = choose_kept(whole, keep=2, best_by="eval/rm/loss")

    assert [checkpoint.manifest.step for checkpoint in kept] == [3, 2]


def test_a_manifest_survives_a_round_trip(run_folder: Storage):
    folder = write_checkpoint(run_folder, 5)
    manifest = read_manifest(run_folder, folder.name)
    assert manifest is not None
    again = replace(manifest, files=json.loads(json.dumps(manifest.files)))
    assert Manifest.from_json(again.to_json()) == manifest


@pytest.mark.parametrize(
    ("before", "after"),
    [('"step": 5', '"step": 7'), ('"plan_fingerprint": "', '"plan_fingerprint": "x'), ("{", "[")],
)
def test_a_manifest_that_was_changed_is_none(run_folder: Storage, before: str, after: str):
    folder = write_checkpoint(run_folder, 5)
    text = run_folder.read_text(f"{folder.name}/{MANIFEST}")
    assert before in text
    run_folder.write_text(f"{folder.name}/{MANIFEST}", text.replace(before, after, 1))
    assert read_manifest(run_folder, folder.name) is None
