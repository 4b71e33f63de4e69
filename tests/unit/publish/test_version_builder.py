"""Checkpoints and exports -> versions ready for publishing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from base_models import make
from made_run import MadeRun, make_run
from safetensors.torch import load_file

from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import STATISTICS
from rm_ray.model.build import build_reward_model
from rm_ray.publish import version_builder
from rm_ray.publish.export_gate import GateResult
from rm_ray.publish.version_builder import VersionBuilder, scratch_home
from rm_ray.runs.manifest import Checkpoint, read_checkpoint
from rm_ray.runs.versions import Version, Versions

pytestmark = pytest.mark.usefixtures("quick_gate")


def builder_of(made: MadeRun) -> VersionBuilder:
    versions = Versions(run_folder=made.run, repo_id="someone/rewards")
    return VersionBuilder(run_folder=made.run, config=made.config, versions=versions)


def checkpoint(made: MadeRun, step: int) -> Checkpoint:
    found = read_checkpoint(made.run, made.save(step).name)
    assert found is not None
    return found


def test_a_checkpoint_becomes_a_folder_for_clients_with_its_weights_and_card(tmp_path: Path):
    made = make_run(tmp_path)
    found = checkpoint(made, 10)
    builder = builder_of(made)

    version = builder.from_checkpoint(found, None)

    assert version == builder.versions.read()[10]
    assert (version.state, version.tag) == ("waiting", "step-00000010")
    assert version.metrics == found.manifest.metrics
    assert (version.differences, version.num_conversations) == ({"alone": 1e-7}, 16)
    folder = Path(builder.versions.files(10).path)
    weights = load_file(folder / "model.safetensors")
    for name, weight in made.engine.weights().items():
        assert torch.equal(weights[name.removeprefix("classifier.")], weight), name
    assert len(json.loads((folder / "config.json").read_text())["id2label"]) == 1
    assert "still training" in (folder / "README.md").read_text()
    report = made.run.read_json("evaluations/step-00000010.json")
    assert json.loads((folder / STATISTICS).read_text()) == report["rewards"]


def test_the_card_has_the_sets_that_were_evaluated_at_its_step(tmp_path: Path):
    made = make_run(tmp_path)
    evaluation = replace(made.config.evaluation, sets=("chat=a.jsonl", "later=b.jsonl"))
    made.config = replace(made.config, evaluation=evaluation)
    found = checkpoint(made, 10)
    report = made.run.read_json("evaluations/step-00000010.json")
    made.run.write_json("evaluations/chat/step-00000010.json", report)
    builder = builder_of(made)
    builder.from_checkpoint(found, None)

    card = (Path(builder.versions.files(10).path) / "README.md").read_text()
    assert "| chat | 8 |" in card
    assert "| later |" not in card


def test_a_checkpoint_of_a_part_of_a_model_is_completed_by_its_base(tmp_path: Path):
    made = make_run(tmp_path)
    found = checkpoint(made, 10)
    builder = builder_of(made)
    builder.config = replace(made.config, model=replace(made.config.model, trainable="head"))

    version = builder.from_checkpoint(found, None)

    assert version is not None and version.state == "waiting"
    weights = load_file(Path(builder.versions.files(10).path) / "model.safetensors")
    seed = made.config.run.seed
    base = build_reward_model(made.config.model, made.tokenizer, seed=seed).state_dict()  # type: ignore[arg-type]
    for name, weight in made.engine.weights().items():
        expected = weight if name == "classifier.score.weight" else base[name]
        assert torch.equal(weights[name.removeprefix("classifier.")], expected), name


def test_the_card_takes_the_head_from_the_result_once_there_is_one(tmp_path: Path):
    made = make_run(tmp_path)
    found = checkpoint(made, 40)
    made.finish()
    made.run.write_json("run.json", {**made.run.read_json("run.json"), "head": "unknown"})
    result = {**made.run.read_json("result.json"), "head": "v_head.weight"}

    builder = builder_of(made)
    builder.from_checkpoint(found, result)

    card = (Path(builder.versions.files(40).path) / "README.md").read_text()
    assert "Its head started from that of the base model (`v_head.weight`)." in card


def test_a_checkpoint_deleted_in_the_meantime_yields_no_version(tmp_path: Path):
    made = make_run(tmp_path)
    found = checkpoint(made, 10)
    made.run.delete(found.name)
    builder = builder_of(made)
    assert builder.from_checkpoint(found, None) is None
    assert builder.versions.read() == {}


def test_a_version_stored_by_another_process_is_kept(tmp_path: Path):
    made = make_run(tmp_path)
    found = checkpoint(made, 10)
    builder = builder_of(made)
    theirs = Version(step=10, tag="theirs", state="published", commit="c" * 40)
    builder.versions.write(theirs)
    assert builder.from_checkpoint(found, None) == theirs
    assert builder.versions.read() == {10: theirs}


def test_a_model_that_fails_the_gate_has_a_record_but_no_files(tmp_path, monkeypatch):
    wrong = GateResult(differences={"alone": 9.0}, num_conversations=16, problem="alone: no")
    monkeypatch.setattr(version_builder, "run_export_gate", lambda *_: wrong)
    made = make_run(tmp_path)
    found = checkpoint(made, 10)
    builder = builder_of(made)
    version = builder.from_checkpoint(found, None)
    assert version is not None
    assert (version.state, version.problem) == ("refused", "alone: no")
    assert not builder.versions.folder.exists("step-00000010")


def test_the_export_of_a_run_without_reference_rewards_is_refused(tmp_path: Path):
    made = make_run(tmp_path, last_step=10)
    with pytest.raises(InputError, match=r"has no probes\.json, so client rewards"):
        builder_of(made).from_export({"steps": 10, "metrics": {}, "mlflow_run_id": None})


def test_a_scratch_folder_is_local_and_removed_afterwards(tmp_path: Path):
    made = make_run(tmp_path)
    builder = builder_of(made)
    with builder.scratch_folder() as folder:
        assert folder.parent == scratch_home(builder.record["key"])
    assert not folder.exists()


def test_a_base_model_that_went_missing_is_named_and_not_passed_over(tmp_path: Path):
    base = tmp_path / "base"
    make(base, "llama")
    made = make_run(tmp_path)
    found = checkpoint(made, 10)
    builder = builder_of(made)
    model = replace(made.config.model, trainable="head", name_or_path=str(base))
    builder.config = replace(made.config, model=model)
    (base / "config.json").unlink()
    with pytest.raises(InputError, match=r"base': the base model is no longer there"):
        builder.from_checkpoint(found, None)


def test_a_file_that_is_missing_elsewhere_is_no_deleted_checkpoint(tmp_path: Path, monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("elsewhere")

    made = make_run(tmp_path)
    found = checkpoint(made, 10)
    monkeypatch.setattr(version_builder, "export_weights", fail)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        builder_of(made).from_checkpoint(found, None)


def test_the_card_has_the_audit_that_was_left_in_the_run_s_folder(tmp_path: Path):
    made = make_run(tmp_path)
    made.run.write_json("audit.json", {"rows": 24, "findings": {"near duplicates": 5}})
    builder = builder_of(made)
    builder.from_checkpoint(checkpoint(made, 10), None)
    card = Path(builder.versions.files(10).path) / "README.md"
    assert "| near duplicates | 5 |" in card.read_text()
