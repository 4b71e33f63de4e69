"""Runs to versions on the loopback Hub: each once, complete, with a card; the best on main."""

from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import ask_for
from made_run import MadeRun, make_run

from rm_ray.errors import InputError
from rm_ray.publish import version_builder
from rm_ray.publish.export_gate import GateResult
from rm_ray.publish.hub import HubRepo
from rm_ray.publish.mirror import Mirror
from rm_ray.runs.history import History, Record
from rm_ray.runs.late_evaluations import LateEvaluation, LateEvaluations
from rm_ray.runs.manifest import MANIFEST, Manifest, read_checkpoint

REPO = "someone/rewards"

pytestmark = pytest.mark.usefixtures("quick_gate")


def mirror_of(made: MadeRun) -> Mirror:
    return Mirror(run_folder=made.run, config=made.config, last_step=made.last_step)


def test_checkpoints_are_published_once_during_training(tags, endpoint, contents, tmp_path):
    made = make_run(tmp_path, every="checkpoint")
    mirror = mirror_of(made)
    repo = HubRepo.open(REPO, private=True, patience_s=20)
    for step in (10, 20):
        made.save(step)
        for _ in range(2):  # the second time is a no-op
            for found in mirror.find_wanted():
                mirror.make_ready(found)
            for version in mirror.find_waiting():
                mirror.publish(version, repo)
    assert set(tags()) == {"step-00000010", "step-00000020"}
    assert contents(REPO, "main") == {}
    files = contents(REPO, "step-00000020")
    assert "still training" in files["README.md"].decode()
    assert files["training_over_episodes.png"].startswith(b"\x89PNG")
    assert not made.run.exists("hub/someone--rewards/step-00000020")
    record = mirror.read_versions()[20]
    assert (record.state, record.commit) == ("published", tags()["step-00000020"])


def test_a_checkpoint_that_is_not_intact_waits(endpoint, tmp_path):
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


def test_an_interrupted_version_resumes(tags, endpoint, contents, tmp_path, monkeypatch):
    """After an interruption at any call, the next look does the rest, once."""
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
    assert set(tags()) == {"step-00000010"}
    assert "model.safetensors" in contents(REPO, "step-00000010")


def test_a_refused_version_without_checkpoint_is_published_from_its_files(
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


def test_a_version_that_failed_the_gate_stays_refused_without_its_checkpoint(
    endpoint, tmp_path, monkeypatch
):
    made = make_run(tmp_path, every="checkpoint")
    checkpoint = made.save(10)
    wrong = GateResult(differences={"alone": 9.0}, num_conversations=16, problem="alone")
    monkeypatch.setattr(version_builder, "run_export_gate", lambda *_: wrong)
    mirror = mirror_of(made)
    mirror.make_ready(mirror.find_wanted()[0])
    made.run.delete(checkpoint.name)
    mirror.retry_refused()
    assert mirror.read_versions()[10].state == "refused"


def evaluated_beside(folder: Path, every: str) -> MadeRun:
    made = make_run(folder, every=every)
    made.config = replace(
        made.config,
        data=replace(made.config.data, eval=("a.jsonl",)),
        checkpoint=replace(made.config.checkpoint, every_steps=10),
        evaluation=replace(made.config.evaluation, where="beside"),
    )
    for step in (10, 20, 30):
        manifest = made.save(step) / MANIFEST
        found = Manifest.from_json(manifest.read_text())
        metrics = {"episode": 8.0 * step}  # what was known when it was saved
        manifest.write_text(replace(found, metrics=metrics).to_json())
    return made


def evaluate(made: MadeRun, step: int, loss: float) -> None:
    metrics = {"eval/rm/loss": loss}
    record = Record(step=step, kind="eval", episode=8 * step, hours=0.5, metrics=metrics)
    LateEvaluations(run_folder=made.run, config=made.config, last_step=made.last_step).write(
        LateEvaluation(step=step, record=record)
    )


@pytest.mark.parametrize(("every", "last"), [("best", [10, 30]), ("checkpoint", [10, 20, 30])])
def test_a_checkpoint_is_published_once_its_evaluation_is_known(
    tmp_path: Path, every: str, last: list[int]
):
    made = evaluated_beside(tmp_path, every)
    mirror = mirror_of(made)

    def wanted() -> list[int]:
        return [found.manifest.step for found in mirror.find_wanted()]

    assert wanted() == []
    evaluate(made, 10, 0.5)
    evaluate(made, 30, 0.1)
    assert wanted() == [10]  # whether 30 is the best is not known before 20 is
    evaluate(made, 20, 0.9)
    assert wanted() == last


def test_a_version_has_its_late_metrics(tmp_path: Path):
    made = evaluated_beside(tmp_path, "best")
    evaluate(made, 10, 0.375)
    mirror = mirror_of(made)
    (found,) = mirror.find_wanted()
    version = mirror.make_ready(found)
    assert version is not None
    assert version.metrics == {"episode": 80.0, "eval/rm/loss": 0.375}
    checkpoint = read_checkpoint(made.run, found.name)
    assert checkpoint is not None
    history = mirror.builder._read_history(checkpoint)
    records = History.from_json_lines(history.splitlines()).records
    assert [(record.step, record.kind) for record in records] == [(10, "train"), (10, "eval")]
