"""Finishing publication on the loopback Hub: every version once, the best on main."""

from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import ask_for
from made_run import MadeRun, make_run

from rm_ray.commands.publish import publish_summary
from rm_ray.errors import InputError
from rm_ray.publish import finish, hub, version_builder
from rm_ray.publish.export_gate import ClientsError, GateResult
from rm_ray.publish.finish import finish_publishing
from rm_ray.publish.mirror import Mirror

REPO = "someone/rewards"

pytestmark = pytest.mark.usefixtures("quick_gate")


def mirror_of(made: MadeRun) -> Mirror:
    return Mirror(run_folder=made.run, config=made.config, last_step=made.last_step)


def test_a_published_run_does_not_contact_the_hub_again(endpoint, tmp_path):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()
    assert finish_publishing(made.folder).is_complete
    before = len(ask_for(endpoint))
    assert finish_publishing(made.folder).is_complete
    assert len(ask_for(endpoint)) == before


def test_a_model_that_fails_the_gate_is_never_published(endpoint, tmp_path, monkeypatch):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()
    fails = GateResult(differences={"pipeline": 0.5}, num_conversations=16, problem="pipeline: no")
    monkeypatch.setattr(version_builder, "run_export_gate", lambda *_: fails)
    published = finish_publishing(made.folder)
    assert published.tags("refused") == ["step-00000010"]
    assert published.main is None
    assert not [line for line in ask_for(endpoint) if "POST" in line or "PUT" in line]


def test_refused_versions_are_retried_on_request(endpoint, tmp_path, monkeypatch):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()
    fails = GateResult(differences={"pipeline": 0.5}, num_conversations=16, problem="pipeline: no")
    with monkeypatch.context() as patch:
        patch.setattr(version_builder, "run_export_gate", lambda *_: fails)
        finish_publishing(made.folder)
    assert finish_publishing(made.folder).tags("refused") == ["step-00000010"]
    assert finish_publishing(made.folder, retries_refused=True).main == "step-00000010"


def test_publishing_stays_pending_if_clients_do_not_answer(endpoint, tmp_path, monkeypatch):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()

    def fails(*_):
        raise ClientsError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(version_builder, "run_export_gate", fails)
        published = finish_publishing(made.folder)
    assert (published.versions, published.problem, published.is_complete) == ([], "killed", False)
    assert finish_publishing(made.folder).main == "step-00000010"


def test_a_hub_outage_is_reported_with_the_command_that_resumes(endpoint, tmp_path, monkeypatch):
    made = make_run(tmp_path, last_step=10, patience_s=3.0)
    made.save(10)
    made.finish()
    mirror_of(made).builder.from_export(made.run.read_json("result.json"))
    ask_for(endpoint, {"match": "/branch/", "kind": "slow", "seconds": 0.8, "count": 99})
    with monkeypatch.context() as patch:
        patch.setattr(hub, "ANSWER_S", 0.5)
        published = finish_publishing(made.folder)
    assert not published.is_complete
    shown = publish_summary(published, made.folder, made.config.hub)
    assert "not published     step-00000010" in shown
    assert f"python jobs/publish.py {made.folder} --repo_id {REPO} --private True" in shown
    ask_for(endpoint)
    patient = replace(made.config.hub, patience_s=100.0)
    assert finish_publishing(made.folder, patient).main == "step-00000010"


def test_a_missing_run_or_repository_is_an_input_error(tmp_path, endpoint):
    with pytest.raises(InputError, match="holds no run"):
        finish_publishing(str(tmp_path))
    made = make_run(tmp_path, repo_id=None)
    with pytest.raises(InputError, match="--repo_id"):
        finish_publishing(made.folder)


def test_a_tag_of_another_run_is_never_overwritten(endpoint, tmp_path):
    made = make_run(tmp_path, last_step=10, revision_prefix="a-")
    made.save(10)
    made.finish()
    assert finish_publishing(made.folder).main == "a-step-00000010"
    again = make_run(tmp_path / "other", last_step=10, revision_prefix="a-")  # the same
    again.advance(5)
    again.save(10)
    again.finish()
    published = finish_publishing(again.folder)
    assert published.tags("refused") == ["a-step-00000010"]
    assert "has other contents than" in published.versions[0].problem
    assert published.main is None
    own = replace(again.config.hub, revision_prefix="b-")
    assert finish_publishing(again.folder, own, retries_refused=True).main == "b-step-00000010"


def test_a_run_in_an_object_store_is_published_too(endpoint, contents, tmp_path):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()
    there = f"memory://{tmp_path.name}/run"
    finish.Storage.open(there.rpartition("/")[0]).upload(Path(made.folder), "run")
    assert finish_publishing(there).main == "step-00000010"
    assert "model.safetensors" in contents(REPO, "main")


def test_a_broken_checkpoint_is_not_kept_for_a_published_run(endpoint, tmp_path):
    made = make_run(tmp_path, last_step=40)
    saved = {step: made.save(step) for step in (10, 20, 30, 40)}
    (saved[40] / "slices-00000.safetensors").unlink()
    made.finish(best_step=20)
    assert finish_publishing(made.folder).is_complete
    left = sorted(path.name for path in Path(made.folder).glob("checkpoint_*"))
    assert left == [saved[20].name, saved[30].name]


def test_a_checkpoint_without_client_answers_does_not_block_the_others(
    tags, endpoint, tmp_path, monkeypatch
):
    made = make_run(tmp_path, every="checkpoint")
    for step in (10, 20):
        made.save(step)
    answers, calls = version_builder.run_export_gate, []

    def killed_once(*about):
        calls.append(about)
        if len(calls) == 1:
            raise ClientsError("the clients were killed for memory")
        return answers(*about)

    monkeypatch.setattr(version_builder, "run_export_gate", killed_once)
    published = finish_publishing(made.folder)
    assert set(tags()) == {"step-00000020"}
    assert published.problem == "the clients were killed for memory"
    shown = publish_summary(published, made.folder, made.config.hub)
    assert "the run           is not finished; hub.every is 'checkpoint'" in shown
    assert finish_publishing(made.folder).problem == ""
    assert set(tags()) == {"step-00000010", "step-00000020"}


def test_a_run_of_another_format_is_not_published(endpoint, tmp_path):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.run.write_json("run.json", made.run.read_json("run.json") | {"format": 1})
    with pytest.raises(InputError, match=r"have format 1, .* Continue it with the version"):
        finish_publishing(made.folder)
    made.finish()
    with pytest.raises(InputError, match=r"have format 1, .* Publish it with the version"):
        finish_publishing(made.folder)
