import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from made_run import make_run
from transformers import AutoModelForSequenceClassification

from rm_ray.config.scoring import ScoringModel, ScoringModels
from rm_ray.config.serving import Server
from rm_ray.errors import InputError
from rm_ray.publish.hub import HubAwayError
from rm_ray.runs.history import Record
from rm_ray.runs.late_evaluations import FOLDER, LateEvaluation
from rm_ray.runs.manifest import Manifest
from rm_ray.serving.versions import (
    ModelVersion,
    find_version,
    refuse_following_several,
    require_followable,
    unchecked_version,
)
from rm_ray.storage import Storage


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that is still training, of which step 20 is the best."""
    run = make_run(tmp_path_factory.mktemp("made"))
    for step in (10, 20, 30):
        run.save(step)
    return run


def version_of(place: str | Path) -> ModelVersion:
    return find_version(ScoringModel(model=str(place)))


def copy_of(run, folder: Path) -> Path:
    return Path(shutil.copytree(run.folder, folder / "copy"))


def test_a_folder_is_the_model_itself_and_cannot_be_followed(exported):
    version = version_of(exported)
    assert version == ModelVersion(name=exported.name, place=str(exported))
    with version.files() as place:
        assert place == str(exported)
    with pytest.raises(InputError, match=r"--follow takes a run's folder .* is a plain folder"):
        require_followable(version, ScoringModel(model=str(exported)))


def test_only_one_model_can_be_followed():
    refuse_following_several(ScoringModels(model=("a",)), Server(follow=True))
    refuse_following_several(ScoringModels(model=("a", "b")), Server())
    with pytest.raises(InputError, match=r"--model names 2.*leave --follow out"):
        refuse_following_several(ScoringModels(model=("a", "b")), Server(follow=True))


def test_a_folder_may_be_a_uri(exported):
    version = version_of(exported.as_uri())
    assert version.name == exported.name
    with version.files() as place:
        assert (Path(place) / "config.json").read_bytes() == (exported / "config.json").read_bytes()


def test_of_a_run_that_trains_it_is_the_best_checkpoint(made):
    version = version_of(made.folder)
    assert (version.name, version.checkpoint) == ("made@step-00000020", "checkpoint_00000020_0001")
    require_followable(version, ScoringModel(model=made.folder))
    with version.files() as place:
        assert AutoModelForSequenceClassification.from_pretrained(place).num_labels == 1
    assert not Path(place).exists()


def test_a_checkpoint_is_exported_as_it_was_trained(tmp_path):
    run = make_run(tmp_path)
    run.save(10)
    with version_of(run.folder).files() as place:
        model = AutoModelForSequenceClassification.from_pretrained(place)
    trained = dict(run.engine.weights())
    assert trained
    found = model.state_dict()
    assert all(
        torch.equal(found[name.removeprefix("classifier.")], value)
        for name, value in trained.items()
    )


def test_a_damaged_checkpoint_is_not_the_best_one(made, tmp_path):
    run = copy_of(made, tmp_path)
    (run / "checkpoint_00000020_0001" / "slices-00000.safetensors").unlink()
    assert version_of(run).name in ("made@step-00000010", "made@step-00000030")


def test_a_checkpoint_whose_contents_changed_is_not_served(made, tmp_path):
    run = copy_of(made, tmp_path)
    slices = run / "checkpoint_00000020_0001" / "slices-00000.safetensors"
    content = bytearray(slices.read_bytes())
    content[-1] ^= 1
    slices.write_bytes(content)
    with (
        pytest.raises(InputError, match=r"cannot be served: .* does not match the checksum"),
        version_of(run).files(),
    ):
        pass


def test_without_a_metric_to_judge_by_it_is_the_newest_checkpoint(made, tmp_path):
    run = copy_of(made, tmp_path)
    record = json.loads((run / "run.json").read_text())
    record["config"]["checkpoint"]["keep_best_by"] = None
    (run / "run.json").write_text(json.dumps(record))
    assert version_of(run).name == "made@step-00000030"


def test_standardized_rewards_are_those_of_an_evaluated_checkpoint(made, tmp_path):
    """The newest one may not be evaluated yet, or never."""
    copy = copy_of(made, tmp_path)
    shutil.rmtree(copy / "evaluations", ignore_errors=True)
    model = ScoringModel(model=str(copy), rewards="standardized")
    with pytest.raises(InputError, match=r"without a whole checkpoint yet that was evaluated on"):
        find_version(model)
    rewards = {"mean": 0.5, "std": 2.0, "num_responses": 8}
    Storage.open(str(copy)).write_json("evaluations/step-00000010.json", {"rewards": rewards})
    version = find_version(model)
    assert version.name == "made@step-00000010"
    with version.files() as place:
        assert json.loads((Path(place) / "reward_statistics.json").read_text()) == rewards


def test_evaluations_beside_training_say_which_checkpoint_is_the_best(made, tmp_path):
    run = copy_of(made, tmp_path)
    for step, loss in ((10, 0.1), (20, 0.2), (30, 0.3)):
        path = run / f"checkpoint_{step:08d}_0001" / "manifest.json"
        manifest = Manifest.from_json(path.read_text())
        path.write_text(replace(manifest, metrics={}).to_json())
        metrics = {"eval/rm/loss": loss}
        record = Record(step=step, kind="eval", episode=8 * step, hours=0.0, metrics=metrics)
        late = asdict(LateEvaluation(step=step, record=record))
        Storage.open(str(run)).write_json(f"{FOLDER}/step-{step:08d}.json", late)
    assert version_of(run).name == "made@step-00000010"


def test_of_a_finished_run_it_is_the_export_or_a_better_checkpoint(tmp_path):
    run = make_run(tmp_path)
    for step in (20, 40):
        run.save(step)
    run.finish(best_step=20)
    assert version_of(run.folder).name == "made@step-00000020"
    run.finish(best_step=40)
    version = version_of(run.folder)
    assert (version.name, version.place) == ("made@step-00000040", f"{run.folder}/export")
    assert version.is_followable


def test_a_run_without_a_checkpoint_has_nothing_to_serve(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(InputError, match="a run without a whole checkpoint yet; wait"):
        version_of(run.folder)


@pytest.mark.parametrize("name", ["builtin", "config.json"])
def test_what_has_no_weights_is_refused(name):
    with pytest.raises(InputError, match="is not a trained reward model"):
        version_of(name)


def test_on_the_hub_it_is_the_commit_of_main_or_of_a_branch(endpoint, exported):
    api = huggingface_hub.HfApi(endpoint=endpoint)
    api.create_repo("someone/rewards")
    first = api.upload_folder(repo_id="someone/rewards", folder_path=exported).oid
    version = version_of("someone/rewards")
    assert version == ModelVersion(
        name=f"someone/rewards@{first[:12]}",
        place="someone/rewards",
        revision=first,
        is_followable=True,
    )
    with pytest.raises(InputError, match="has no branch, tag or commit 'none'"):
        find_version(ScoringModel(model="someone/rewards", revision="none"))
    with pytest.raises(InputError, match="--model 'someone/nothing'"):
        version_of("someone/nothing")


def test_without_the_hub_its_files_on_this_machine_are_served(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubAwayError):
        version_of("someone/rewards")
    model = ScoringModel(model="someone/rewards", revision="v1")
    version = unchecked_version(model)
    assert (version.name, version.revision) == ("someone/rewards", "v1")
    require_followable(version, model)  # it takes over newer ones once the Hub answers
