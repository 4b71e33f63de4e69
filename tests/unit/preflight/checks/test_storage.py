"""The storage as seen by all machines, and disk space."""

from dataclasses import replace

import pytest

from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.preflight.checks.storage import (
    Sizes,
    check_disk,
    check_staging,
    check_storage,
    list_answers,
    open_exchange,
)
from rm_ray.preflight.machines import MachineProbe, MachineReport, make_report
from rm_ray.storage import Storage


def sizes(number: int) -> Sizes:
    return Sizes.of(TrainConfig(), num_parameters=number, num_trained=number)


NODE = MachineReport(name="one", staging="/tmp", staging_free=10**12)


def test_a_shared_storage_passes_and_is_cleaned_up(tmp_path):
    storage = Storage.open(str(tmp_path))
    with open_exchange(storage) as token:
        reports = [
            make_report(MachineProbe(storage=storage, token=token, node_id=node))
            for node in ("a", "b")
        ]
        answers = list_answers(storage, token)
    assert answers == {"a", "b"}
    assert check_storage(reports, answers, storage).outcome == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_is_a_different_folder_elsewhere_fails(tmp_path):
    here, there = (Storage.open(str(tmp_path / name)) for name in ("here", "there"))
    with open_exchange(here) as token:
        reports = [make_report(MachineProbe(storage=there, token=token, node_id="a"))]
    verdict = check_storage(reports, [], here)
    assert verdict.outcome == "failed"
    assert "this is not the same folder" in verdict.found
    # The driver does not see the machine's file.
    alone = [replace(reports[0], storage_error="")]
    assert "0 of 1 machines" in check_storage(alone, [], here).found


def test_an_unwritable_storage_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    storage = Storage.open(str(tmp_path / "file" / "runs"))
    with pytest.raises(InputError, match="cannot be written"), open_exchange(storage):
        pass


def test_a_disk_needs_room_for_the_kept_checkpoints_and_two_more(tmp_path):
    storage = Storage.open(str(tmp_path / "not" / "yet"))
    many = CheckpointConfig(every_steps=1, keep=3)
    verdict = check_disk(storage, many, sizes(1_000_000), num_steps=100)
    assert verdict.outcome == "ok"
    assert "5 checkpoints and the model take up to 0.06 GB" in verdict.found
    there = check_disk(storage, many, sizes(1_000_000), num_steps=100, num_there=many.keep)
    assert "of which 0.04 GB already exist" in there.found
    once = check_disk(storage, CheckpointConfig(), sizes(10**6), num_steps=100)
    assert "1 checkpoint and the model" in once.found
    assert check_disk(storage, many, sizes(10**14), num_steps=9).outcome == "failed"


def test_a_machine_without_room_for_a_checkpoint_is_named():
    small = replace(NODE, name="two", staging_free=10**9)
    verdict = check_staging([NODE, small], sizes(10**9))
    assert verdict.outcome == "warning"
    assert "two has 1.0 GB free in /tmp" in verdict.found
    assert "one" not in verdict.found
    assert check_staging([NODE], sizes(10**9)).outcome == "ok"
    assert check_staging([replace(NODE, staging_error="x")], sizes(1)).remedy


@pytest.mark.parametrize(
    ("export", "written"), [("merged", 1_000), ("adapter", 10), ("both", 1_010)]
)
def test_checkpoints_hold_what_is_trained_and_the_export_what_is_asked_for(export, written):
    config = TrainConfig(
        model=ModelConfig(dtype="bfloat16"), lora=LoraConfig(rank=2, export=export)
    )
    found = Sizes.of(config, num_parameters=1_000, num_trained=10)
    assert found == Sizes(checkpoint=120, export=2 * written)
