"""What a run's ``run.json`` says once a later command has changed what may be changed."""

from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest

from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.runs import record as record_module
from rm_ray.runs.record import open_record, open_run, versions
from rm_ray.storage import Storage


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    config = TrainConfig()
    return replace(config, run=replace(config.run, name="one", storage_path=str(tmp_path)))


def resolved(config: TrainConfig) -> SimpleNamespace:
    """What of a prepared run its record is made of."""
    run_folder = Storage.open(config.run.storage_path).folder(config.run.name)
    plan = SimpleNamespace(steps=SimpleNamespace(total=10))
    return SimpleNamespace(
        run_folder=run_folder,
        config=config,
        identity={"plan": "p"},
        plan=plan,
        template_date=date(2026, 1, 31),
    )


def changed(config: TrainConfig) -> TrainConfig:
    return replace(
        config,
        run=replace(config.run, deterministic=True),
        checkpoint=replace(config.checkpoint, keep=5),
        hub=replace(config.hub, repo_id="me/model"),
        cluster=replace(config.cluster, num_workers=3),
        mlflow=replace(config.mlflow, registered_model="rewards"),
    )


def test_a_resumed_run_has_the_settings_of_its_newest_command(config):
    first = open_record(resolved(config), {})
    again = open_record(resolved(changed(config)), {})
    assert again["key"] == first["key"]
    assert again["config"] == changed(config).to_json()
    assert resolved(config).run_folder.read_json("run.json") == again


def test_a_finished_run_is_published_and_registered_as_its_newest_command_says(config):
    open_record(resolved(config), {})
    run_folder = resolved(config).run_folder
    run_folder.write_json("result.json", {"steps": 10})
    assert open_run(changed(config))[1] == {"steps": 10}
    settings = run_folder.read_json("run.json")["config"]
    assert settings["checkpoint"]["keep"] == 5
    assert settings["hub"]["repo_id"] == "me/model"
    assert settings["mlflow"]["registered_model"] == "rewards"
    assert settings["cluster"] == config.to_json()["cluster"]  # what it was trained on
    assert settings["run"] == config.to_json()["run"]


def test_what_is_trained_may_not_change(config):
    open_record(resolved(config), {})
    other = replace(config, optimizer=replace(config.optimizer, learning_rate=0.5))
    with pytest.raises(InputError, match=r"optimizer\.learning_rate was"):
        open_run(other)


def test_a_run_from_before_a_setting_had_its_default(config):
    record = open_record(resolved(config), {})
    del record["config"]["run"]["deterministic"], record["config"]["data"]["drop_overlap"]
    resolved(config).run_folder.write_json("run.json", record)
    open_run(config)
    with pytest.raises(InputError, match="drop_overlap was False and is True"):
        open_run(replace(config, data=replace(config.data, drop_overlap=True)))


def test_a_storage_may_be_moved_or_reached_by_another_path(config, tmp_path):
    open_record(resolved(config), {})
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    linked = replace(config, run=replace(config.run, storage_path=str(link)))
    run_folder, _ = open_run(linked)
    assert run_folder.path == f"{tmp_path}/one"
    tmp_path.rename(tmp_path.parent / "moved")
    moved = replace(config, run=replace(config.run, storage_path=f"{tmp_path.parent}/moved"))
    open_run(moved)
    record = open_record(resolved(moved), {})
    assert record["config"]["run"]["storage_path"] == f"{tmp_path.parent}/moved"


def test_a_record_that_is_cut_short_is_named(config):
    run_folder = resolved(config).run_folder
    run_folder.write_text("run.json", "{")
    with pytest.raises(InputError, match=r"one/run.json is not whole"):
        open_run(config)


@pytest.mark.parametrize(("told", "commit"), [("0123456789ab", "0123456789ab"), ("", None)])
def test_outside_of_a_clone_who_submits_says_the_commit(
    told: str, commit: str | None, monkeypatch: pytest.MonkeyPatch
):
    def run(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(record_module.subprocess, "run", run)
    monkeypatch.setenv("RM_RAY_COMMIT", told)

    assert versions().get("version.rm_ray") == commit
