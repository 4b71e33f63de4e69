from dataclasses import replace
from pathlib import Path

import pytest
from resolved_runs import builtin_run

from rm_ray.driver import run_record
from rm_ray.driver.run_record import begin_record
from rm_ray.errors import InputError
from rm_ray.publish.base_hash import hash_base
from rm_ray.publish.hub import HubAwayError
from rm_ray.runs.checkpoint_names import checkpoint_name
from rm_ray.runs.layout import RUN, SKELETON
from rm_ray.storage import Storage


def test_a_new_run_writes_its_record_and_its_model_without_weights(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    record = begin_record(resolved)

    assert resolved.run_folder.read_json(RUN) == record
    assert record["identity"] == resolved.identity
    assert record["data"]["train"]["pairs"] == 24
    assert record["head"] == "new"
    names = {entry.name for entry in resolved.run_folder.folder(SKELETON).list()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not {name for name in names if name.endswith(".safetensors")}


def test_a_run_of_a_part_of_a_model_refuses_another_base(tmp_path: Path):
    resolved = builtin_run(tmp_path)
    assert "base_hash" not in begin_record(resolved)
    base = tmp_path / "model.json"
    base.write_text('{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 1}')
    part = replace(resolved.config.model, trainable="head", name_or_path=str(base))
    resolved = replace(resolved, config=replace(resolved.config, model=part))
    first = begin_record(resolved)
    assert first["base_hash"] == resolved.run_folder.read_json(RUN)["base_hash"] != ""
    assert begin_record(resolved)["base_hash"] == first["base_hash"]
    base.write_text(base.read_text().replace("64", "128"))
    with pytest.raises(InputError, match=r"model.json' has changed since the run began"):
        begin_record(resolved)


def test_the_record_says_which_head_was_kept(tmp_path: Path):
    resolved = replace(builtin_run(tmp_path), head="score.weight")

    assert begin_record(resolved)["head"] == "score.weight"
    assert begin_record(replace(resolved, head="unknown"))["head"] == "score.weight"


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


def test_a_resumed_run_may_get_new_sets_and_leave_out_old_ones(tmp_path: Path):
    first = begin_record(builtin_run(tmp_path))
    assert "eval/more" not in first["identity"]
    resolved = builtin_run(tmp_path / "again", named_sets={"more": 5})
    with_more = replace(resolved, storage=Storage.open(str(tmp_path / "storage")))
    second = begin_record(with_more)
    assert second["key"] == first["key"]
    assert second["identity"] == {**first["identity"], "eval/more": "identity of test"}
    assert second["data"]["eval/more"]["pairs"] == 5
    without = replace(with_more, named_sets=())
    assert begin_record(without)["identity"] == second["identity"]  # its metrics stay, too


def test_a_set_with_other_rows_needs_another_name(tmp_path: Path):
    resolved = builtin_run(tmp_path, named_sets={"more": 5})
    begin_record(resolved)
    (more,) = resolved.named_sets
    other = replace(more, cache=replace(more.cache, identity="another"))
    with pytest.raises(InputError, match=r"differing: eval/more.*name the set .* anew"):
        begin_record(replace(resolved, named_sets=(other,)))
    begin_record(replace(resolved, named_sets=(more, replace(other, name="again"))))


def test_a_run_that_began_without_the_hub_leaves_the_hash_to_its_checkpoints(tmp_path, monkeypatch):
    """Another base may be there by now: workers compare it with that of the checkpoint."""
    resolved = builtin_run(tmp_path)
    part = replace(resolved.config.model, trainable="head")
    resolved = replace(resolved, config=replace(resolved.config, model=part))
    with monkeypatch.context() as away:
        away.setattr(run_record, "hash_base", fail)
        assert "base_hash" not in begin_record(resolved)
    (Path(resolved.run_folder.path) / checkpoint_name(10, 1)).mkdir()
    assert begin_record(resolved)["base_hash"] == hash_base(part)
    assert "base_hash" not in resolved.run_folder.read_json(RUN)


def fail(_: object) -> str:
    raise HubAwayError("the Hub does not answer")
