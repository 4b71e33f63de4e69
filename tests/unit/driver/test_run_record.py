from dataclasses import replace
from pathlib import Path

import pytest
from resolved_runs import builtin_run

from rm_ray.driver.run_record import begin_record
from rm_ray.errors import InputError
from rm_ray.runs.layout import RUN, SKELETON


def test_a_new_run_writes_its_record_and_its_model_without_weights(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    record = begin_record(resolved)

    assert resolved.run_folder.read_json(RUN) == record
    assert record["identity"] == resolved.identity
    assert record["data"]["train"]["pairs"] == 24
    names = {entry.name for entry in resolved.run_folder.folder(SKELETON).list()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not {name for name in names if name.endswith(".safetensors")}


def test_a_resumed_run_keeps_its_key_and_does_not_rewrite_its_model(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    first = begin_record(resolved)
    resolved.run_folder.folder(SKELETON).delete_file("config.json")

    assert begin_record(resolved)["key"] == first["key"]
    assert not resolved.run_folder.folder(SKELETON).exists("config.json")


def test_resuming_on_different_pairs_is_refused(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    begin_record(resolved)
    other = replace(resolved, train=replace(resolved.train, identity="another"))

    with pytest.raises(InputError, match=r"run 'small' began with other pairs.*differing: train"):
        begin_record(other)
