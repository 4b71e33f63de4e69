"""A run's ``run.json`` after later commands with changed settings."""

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.run import RunConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.runs import record as record_module
from rm_ray.runs.layout import FORMAT
from rm_ray.runs.record import (
    open_record,
    open_run,
    refuse_other_base,
    refuse_other_data,
    versions,
)
from rm_ray.storage import Storage


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    run = RunConfig(name="one", storage_path=str(tmp_path))
    return TrainConfig(run=run, cluster=ClusterConfig(num_workers=2, use_gpu=False))


def folder_of(config: TrainConfig) -> Storage:
    return Storage.open(config.run.storage_path).folder(config.run.name)


def begin(config: TrainConfig) -> dict[str, Any]:
    """Start or resume a run, as its driver does."""
    return open_record(
        folder_of(config),
        config.settle(),
        identity={"plan": "p"},
        data={},
        template_date=date(2026, 1, 31),
        num_steps=10,
    )


def look_up(config: TrainConfig) -> tuple[Storage, dict[str, Any] | None]:
    return open_run(Storage.open(config.run.storage_path), config)


def changed(config: TrainConfig) -> TrainConfig:
    return replace(
        config,
        run=replace(config.run, deterministic=True),
        checkpoint=replace(config.checkpoint, keep=5),
        hub=replace(config.hub, repo_id="me/model"),
        cluster=replace(config.cluster, num_workers=3),
        mlflow=replace(config.mlflow, registered_model="rewards"),
    )


def test_a_new_run_records_its_settings(config):
    record = begin(config)

    assert folder_of(config).read_json("run.json") == record
    assert record["config"] == config.to_json()
    assert record["format"] == FORMAT
    assert record["template_date"] == "2026-01-31"
    assert (record["identity"], record["steps"]) == ({"plan": "p"}, 10)


def test_pairs_that_differ_from_the_runs_are_refused():
    record = {"identity": {"train": "a", "eval": "b", "plan": "c"}}

    refuse_other_data(record, {"train": "a", "eval": "b", "plan": "c"}, name="one")
    with pytest.raises(InputError, match=r"run 'one' began with other .*\(differing: eval, plan\)"):
        refuse_other_data(record, {"train": "a", "eval": "", "plan": "d"}, name="one")


def test_a_resumed_run_has_the_settings_of_its_newest_command(config):
    first = begin(config)
    again = begin(changed(config))
    assert again["key"] == first["key"]
    assert again["config"] == changed(config).to_json()
    assert folder_of(config).read_json("run.json") == again


def test_a_finished_run_takes_hub_and_registry_settings_from_its_newest_command(config):
    begin(config)
    run_folder = folder_of(config)
    run_folder.write_json("result.json", {"steps": 10})
    assert look_up(changed(config))[1] == {"steps": 10}
    settings = run_folder.read_json("run.json")["config"]
    assert settings["checkpoint"]["keep"] == 5
    assert settings["hub"]["repo_id"] == "me/model"
    assert settings["mlflow"]["registered_model"] == "rewards"
    assert settings["cluster"] == config.to_json()["cluster"]  # what it was trained on
    assert settings["run"] == config.to_json()["run"]


def test_training_settings_may_not_change(config):
    begin(config)
    other = replace(config, optimizer=replace(config.optimizer, learning_rate=0.5))
    with pytest.raises(InputError, match=r"optimizer\.learning_rate was"):
        look_up(other)


def test_the_head_may_not_change(config):
    begin(config)
    for head in ("new", "keep"):
        with pytest.raises(InputError, match=f"model.head was 'auto' and is '{head}'"):
            look_up(replace(config, model=replace(config.model, head=head)))


def test_a_run_older_than_a_setting_had_its_default(config):
    record = begin(config)
    del record["config"]["run"]["deterministic"], record["config"]["data"]["drop_overlap"]
    folder_of(config).write_json("run.json", record)
    look_up(config)
    with pytest.raises(InputError, match="drop_overlap was False and is True"):
        look_up(replace(config, data=replace(config.data, drop_overlap=True)))


def test_a_storage_may_be_moved_or_reached_by_another_path(config, tmp_path):
    begin(config)
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    linked = replace(config, run=replace(config.run, storage_path=str(link)))
    run_folder, _ = look_up(linked)
    assert run_folder.path == f"{tmp_path}/one"
    tmp_path.rename(tmp_path.parent / "moved")
    moved = replace(config, run=replace(config.run, storage_path=f"{tmp_path.parent}/moved"))
    look_up(moved)
    record = begin(moved)
    assert record["config"]["run"]["storage_path"] == f"{tmp_path.parent}/moved"


def test_a_truncated_record_is_reported_with_its_path(config):
    run_folder = folder_of(config)
    run_folder.write_text("run.json", "{")
    with pytest.raises(InputError, match=r"one/run.json is not valid JSON"):
        look_up(config)


@pytest.mark.parametrize(("submitted", "commit"), [("0123456789ab", "0123456789ab"), ("", None)])
def test_outside_of_a_clone_the_commit_comes_from_the_environment(
    submitted: str, commit: str | None, monkeypatch: pytest.MonkeyPatch
):
    def run(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(record_module.subprocess, "run", run)
    monkeypatch.setenv("RM_RAY_COMMIT", submitted)

    assert versions().get("version.rm_ray") == commit


def test_an_unfinished_run_of_another_format_is_not_continued(config):
    record = begin(config)
    del record["format"]  # as the first format had it
    record["versions"] = {"version.rm_ray": "abc1234"}
    folder_of(config).write_json("run.json", record)

    with pytest.raises(InputError, match=r"have format 1, .* that began it \(abc1234\)"):
        look_up(config)

    folder_of(config).write_json("result.json", {"steps": 10})
    assert look_up(config)[1] == {"steps": 10}


def with_sets(config: TrainConfig, *sets: str) -> TrainConfig:
    return replace(config, evaluation=replace(config.evaluation, sets=sets))


def test_sets_may_change_unless_training_pairs_are_chosen_by_them(config):
    begin(with_sets(config, "chat=a.jsonl"))
    look_up(with_sets(config, "chat=moved.jsonl", "code=b.jsonl"))
    look_up(config)

    dropping = replace(config, data=replace(config.data, drop_overlap=True))
    dropping = replace(dropping, run=replace(config.run, name="two"))
    begin(with_sets(dropping, "chat=a.jsonl"))
    look_up(with_sets(dropping, "chat=a.jsonl"))
    with pytest.raises(InputError, match=r"evaluation\.sets was \['chat=a.jsonl'\] and is \[\]"):
        look_up(dropping)


def test_a_finished_run_keeps_the_sets_that_it_was_evaluated_on(config):
    begin(with_sets(config, "chat=a.jsonl"))
    run_folder = folder_of(config)
    run_folder.write_json("result.json", {"steps": 10})
    look_up(with_sets(config, "code=b.jsonl"))
    assert run_folder.read_json("run.json")["config"]["evaluation"]["sets"] == ["chat=a.jsonl"]


def test_random_weights_change_with_the_versions_of_libraries():
    refuse_other_base("", "1" * 64, model="builtin")
    with pytest.raises(InputError, match="its config, as the installed PyTorch and transf"):
        refuse_other_base("0" * 64, "1" * 64, model="builtin")
    with pytest.raises(InputError, match=r"its config or weights have .*name its commit"):
        refuse_other_base("0" * 64, "1" * 64, model="org/model")
