"""Runs to versions on the loopback Hub: each once, whole, and described; the best on main."""

from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import ask_for
from huggingface_hub import HfApi
from made_run import MadeRun, make_run

from rm_ray.commands import publish as command
from rm_ray.commands.publish import publish_summary
from rm_ray.errors import InputError
from rm_ray.publish import finish, registration
from rm_ray.publish import mirror as mirror_module
from rm_ray.publish.export_gate import ClientsError, GateResult
from rm_ray.publish.finish import finish_publishing
from rm_ray.publish.hub import HubRepo
from rm_ray.publish.mirror import Mirror, best_step

REPO = "someone/rewards"


@pytest.fixture(autouse=True)
def _quick_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh processes take seconds; the gate's own tests have them, and test_published_run.py."""

    def passes(folder: Path, probes: dict, dtype: str) -> GateResult:
        assert (folder / "model.safetensors").is_file()
        assert (probes["pairs"], dtype) == (probes["pairs"][:8], "float32")
        return GateResult(differences={"alone": 1e-7}, num_conversations=16)

    monkeypatch.setattr(mirror_module, "run_export_gate", passes)


def mirror_of(made: MadeRun) -> Mirror:
    return Mirror(run_folder=made.run, config=made.config, last_step=made.last_step)


def tags(endpoint: str) -> dict[str, str]:
    refs = HfApi(endpoint=endpoint).list_repo_refs(REPO)
    return {ref.name: ref.target_commit for ref in refs.tags}


def test_checkpoints_are_published_once_while_the_run_goes_on(endpoint, contents, tmp_path):
    made = make_run(tmp_path, every="checkpoint")
    mirror = mirror_of(made)
    repo = HubRepo.open(REPO, private=True, patience_s=20)
    for step in (10, 20):
        made.save(step)
        for _ in range(2):  # the second time there is nothing to do
            for found in mirror.find_wanted():
                mirror.make_ready(found)
            for version in mirror.find_waiting():
                mirror.publish(version, repo)
    assert set(tags(endpoint)) == {"step-00000010", "step-00000020"}
    assert contents(REPO, "main") == {}
    files = contents(REPO, "step-00000020")
    assert "still under way" in files["README.md"].decode()
    assert files["training_over_episodes.png"].startswith(b"\x89PNG")
    assert not made.run.exists("hub/someone--rewards/step-00000020")
    record = mirror.read_versions()[20]
    assert (record.state, record.commit) == ("published", tags(endpoint)["step-00000020"])


def test_what_is_published_needs_no_hub_again(endpoint, tmp_path):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()
    assert finish_publishing(made.folder).is_whole
    before = len(ask_for(endpoint))
    assert finish_publishing(made.folder).is_whole
    assert len(ask_for(endpoint)) == before


def test_a_model_that_clients_score_otherwise_is_never_published(endpoint, tmp_path, monkeypatch):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()
    fails = GateResult(differences={"pipeline": 0.5}, num_conversations=16, problem="pipeline: no")
    monkeypatch.setattr(mirror_module, "run_export_gate", lambda *_: fails)
    published = finish_publishing(made.folder)
    assert published.tags("refused") == ["step-00000010"]
    assert published.main is None
    assert not [line for line in ask_for(endpoint) if "POST" in line or "PUT" in line]


def test_what_was_refused_is_tried_again_when_asked_to(endpoint, tmp_path, monkeypatch):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()
    fails = GateResult(differences={"pipeline": 0.5}, num_conversations=16, problem="pipeline: no")
    with monkeypatch.context() as patch:
        patch.setattr(mirror_module, "run_export_gate", lambda *_: fails)
        finish_publishing(made.folder)
    assert finish_publishing(made.folder).tags("refused") == ["step-00000010"]
    assert finish_publishing(made.folder, retries_refused=True).main == "step-00000010"


def test_clients_that_do_not_answer_leave_it_to_be_done(endpoint, tmp_path, monkeypatch):
    made = make_run(tmp_path, last_step=10)
    made.save(10)
    made.finish()

    def fails(*_):
        raise ClientsError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(mirror_module, "run_export_gate", fails)
        published = finish_publishing(made.folder)
    assert (published.versions, published.problem, published.is_whole) == ([], "killed", False)
    assert finish_publishing(made.folder).main == "step-00000010"


def test_without_a_metric_the_last_model_is_the_best(tmp_path):
    made = make_run(tmp_path, last_step=30)
    result = {"steps": 30, "best_checkpoint": made.run.join("checkpoint_00000020_0001")}
    assert best_step(made.config, result) == 20
    plain = replace(made.config, checkpoint=replace(made.config.checkpoint, keep_best_by=None))
    assert best_step(plain, result) == 30


def test_a_checkpoint_that_is_not_whole_waits(endpoint, tmp_path):
    made = make_run(tmp_path, every="checkpoint")
    slices = made.save(10) / "slices-00000.safetensors"
    whole = slices.read_bytes()
    mirror = mirror_of(made)
    for broken in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        slices.write_bytes(broken)
        (found,) = mirror.find_wanted()
        assert mirror.make_ready(found) is None
    assert mirror.read_versions() == {}
    slices.write_bytes(whole)
    (found,) = mirror.find_wanted()
    assert mirror.make_ready(found).state == "waiting"


def test_a_version_goes_on_where_it_was_interrupted(endpoint, contents, tmp_path, monkeypatch):
    """Whichever call is the last that gets through, the next look does the rest, once."""
    made = make_run(tmp_path, every="checkpoint")
    made.save(10)
    mirror = mirror_of(made)
    (found,) = mirror.find_wanted()
    version = mirror.make_ready(found)
    for call in ("/branch/", "/preupload/", "objects/batch", "/commit/", "/tag/", "/tree/"):
        ask_for(endpoint, {"match": call, "kind": "status", "status": 401, "count": 1})
        with pytest.raises(InputError, match="the token is wrong"):
            mirror.publish(version, HubRepo.open(REPO, private=True, patience_s=5))
        assert [each.step for each in mirror.find_waiting()] == [10]
    ask_for(endpoint)
    mirror.publish(version, HubRepo.open(REPO, private=True, patience_s=5))
    assert set(tags(endpoint)) == {"step-00000010"}
    assert "model.safetensors" in contents(REPO, "step-00000010")


def test_a_hub_that_stays_away_is_told_with_the_command_that_goes_on(endpoint, tmp_path):
    made = make_run(tmp_path, last_step=10, patience_s=3.0)
    made.save(10)
    made.finish()
    mirror_of(made).make_last_ready(made.run.read_json("result.json"))
    ask_for(endpoint, {"match": "/branch/", "kind": "hang", "seconds": 0.6, "count": 99})
    published = finish_publishing(made.folder)
    assert not published.is_whole
    shown = publish_summary(published, made.folder, made.config.hub)
    assert "not published     step-00000010" in shown
    assert f"python jobs/publish.py {made.folder} --repo_id {REPO} --private True" in shown
    ask_for(endpoint)
    patient = replace(made.config.hub, patience_s=100.0)
    assert finish_publishing(made.folder, patient).main == "step-00000010"


def test_a_run_that_is_not_one_or_has_no_repository_is_told(tmp_path, endpoint):
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


def test_a_broken_checkpoint_is_not_what_is_kept_of_a_published_run(endpoint, tmp_path):
    made = make_run(tmp_path, last_step=40)
    saved = {step: made.save(step) for step in (10, 20, 30, 40)}
    (saved[40] / "slices-00000.safetensors").unlink()
    made.finish(best_step=20)
    assert finish_publishing(made.folder).is_whole
    left = sorted(path.name for path in Path(made.folder).glob("checkpoint_*"))
    assert left == [saved[20].name, saved[30].name]


def test_the_end_of_a_run_has_a_limit_and_ctrl_c_leads_to_the_command_that_goes_on(
    endpoint, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "rm_ray.commands.publish")
    made = make_run(tmp_path, last_step=10, patience_s=0.01)
    made.save(10)
    made.finish()
    assert command.publish_end(made.config) == 0  # the run itself is finished
    assert "not published     main: it was not done within 0 s" in caplog.text
    again = f"python jobs/publish.py {made.folder} --repo_id {REPO} --private True"
    assert again in caplog.text

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    caplog.clear()
    monkeypatch.setattr(finish, "finish_publishing", interrupted)
    assert command.publish_end(made.config) == command.INTERRUPTED
    assert again in caplog.text


def test_what_was_refused_is_published_from_its_files_where_its_checkpoint_is_gone(
    endpoint, contents, tmp_path
):
    other = make_run(tmp_path / "other", every="checkpoint")
    other.advance(5)
    other.save(10)
    (found,) = mirror_of(other).find_wanted()
    hub = HubRepo.open(REPO, private=True, patience_s=5)
    mirror_of(other).publish(mirror_of(other).make_ready(found), hub)

    made = make_run(tmp_path, every="checkpoint")
    checkpoint = made.save(10)
    mirror = mirror_of(made)
    mirror.publish(mirror.make_ready(mirror.find_wanted()[0]), hub)
    assert mirror.read_versions()[10].state == "refused"
    weights = mirror.versions.files(10).join("model.safetensors")
    kept = Path(weights).read_bytes()
    made.run.delete(checkpoint.name)

    elsewhere = replace(made.config, hub=replace(made.config.hub, revision_prefix="b-"))
    again = Mirror(run_folder=made.run, config=elsewhere, last_step=made.last_step)
    again.retry_refused()
    assert Path(weights).read_bytes() == kept
    again.publish(again.find_waiting()[0], hub)
    published = contents(REPO, "b-step-00000010")
    assert published["model.safetensors"] == kept
    assert 'revision="b-step-00000010"' in published["README.md"].decode()


def test_what_clients_refused_stays_refused_where_its_checkpoint_is_gone(
    endpoint, tmp_path, monkeypatch
):
    made = make_run(tmp_path, every="checkpoint")
    checkpoint = made.save(10)
    wrong = GateResult(differences={"alone": 9.0}, num_conversations=16, problem="alone")
    monkeypatch.setattr(mirror_module, "run_export_gate", lambda *_: wrong)
    mirror = mirror_of(made)
    mirror.make_ready(mirror.find_wanted()[0])
    made.run.delete(checkpoint.name)
    mirror.retry_refused()
    assert mirror.read_versions()[10].state == "refused"


def test_a_run_without_a_repository_is_registered_by_its_own_command_again(
    tmp_path, monkeypatch, caplog
):
    made = make_run(tmp_path, repo_id=None)
    config = replace(made.config, mlflow=replace(made.config.mlflow, registered_model="rewards"))
    monkeypatch.setattr(registration, "register_models", lambda *_: False)
    assert command.publish_end(config) == 0
    assert "to register it: the same command again" in caplog.text


def test_a_checkpoint_that_clients_do_not_answer_for_keeps_no_other_from_the_hub(
    endpoint, tmp_path, monkeypatch
):
    made = make_run(tmp_path, every="checkpoint")
    for step in (10, 20):
        made.save(step)
    answers, calls = mirror_module.run_export_gate, []

    def killed_once(*about):
        calls.append(about)
        if len(calls) == 1:
            raise ClientsError("the clients were killed for memory")
        return answers(*about)

    monkeypatch.setattr(mirror_module, "run_export_gate", killed_once)
    published = finish_publishing(made.folder)
    assert set(tags(endpoint)) == {"step-00000020"}
    assert published.problem == "the clients were killed for memory"
    shown = publish_summary(published, made.folder, made.config.hub)
    assert "the run           is not finished; hub.every is 'checkpoint'" in shown
    assert finish_publishing(made.folder).problem == ""
    assert set(tags(endpoint)) == {"step-00000010", "step-00000020"}
