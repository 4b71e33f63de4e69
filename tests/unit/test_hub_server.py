"""The loopback Hub, asked by the real client."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKEN, serving
from huggingface_hub import CommitOperationCopy, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

REPO = "someone/model"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with serving(tmp_path / "hub") as address:
        yield HfApi(endpoint=address, token=TOKEN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# a model\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def ask_for(api: HfApi, *faults: dict) -> dict:
    request = urllib.request.Request(f"{api.endpoint}/_faults", json.dumps(faults).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_branch_is_uploaded_tagged_and_downloaded(api: HfApi, folder: Path, tmp_path: Path):
    assert api.whoami()["name"] == "someone"
    api.create_repo(REPO, exist_ok=True)
    api.create_repo(REPO, exist_ok=True)
    api.create_branch(REPO, branch="step-1", exist_ok=True)
    commit = api.upload_folder(repo_id=REPO, folder_path=folder, revision="step-1")
    again = api.upload_folder(repo_id=REPO, folder_path=folder, revision="step-1")
    assert again.oid == commit.oid
    api.create_tag(REPO, tag="v1", revision="step-1")
    with pytest.raises(HfHubHTTPError):
        api.create_tag(REPO, tag="v1", revision="step-1")
    refs = api.list_repo_refs(REPO)
    assert {ref.name for ref in refs.branches} == {"main", "step-1"}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", commit.oid)]
    assert api.model_info(REPO, revision="main").siblings == []
    found = snapshot_download(
        REPO, revision="v1", local_dir=tmp_path / "back", endpoint=api.endpoint, token=TOKEN
    )
    for path in folder.iterdir():
        assert (Path(found) / path.name).read_bytes() == path.read_bytes()


def test_a_tag_is_copied_to_main_in_one_commit(api: HfApi, folder: Path, tmp_path: Path):
    api.create_repo(REPO)
    api.create_branch(REPO, branch="step-1")
    api.upload_folder(repo_id=REPO, folder_path=folder, revision="step-1")
    copies = [CommitOperationCopy(p.name, p.name, src_revision="step-1") for p in folder.iterdir()]
    api.create_commit(REPO, copies, commit_message="best", revision="main")
    ours, theirs = (
        {file.path: (file.size, file.blob_id) for file in api.list_repo_tree(REPO, revision=name)}
        for name in ("main", "step-1")
    )
    assert ours == theirs and len(ours) == 3
    copied = hf_hub_download(
        REPO, "model.safetensors", endpoint=api.endpoint, token=TOKEN, cache_dir=tmp_path / "cache"
    )
    assert Path(copied).read_bytes() == (folder / "model.safetensors").read_bytes()


def test_what_is_missing_is_told_as_the_hub_does(api: HfApi):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("someone/nothing")
    api.create_repo(REPO)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="nowhere")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=api.endpoint, token="hf_wrong").whoami()


def test_faults_come_as_often_as_asked_for(api: HfApi, folder: Path):
    api.create_repo(REPO)
    ask_for(api, {"match": "POST .*/tag/", "kind": "status", "status": 503, "count": 2})
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="503"):
            api.create_tag(REPO, tag="v1")
    api.create_tag(REPO, tag="v1")
    log = ask_for(api)["log"]
    assert [line.endswith("status") for line in log if "/tag/" in line] == [True, True, False]


def test_a_commit_whose_answer_is_lost_is_there(api: HfApi, folder: Path):
    api.create_repo(REPO)
    ask_for(api, {"match": "/commit/", "kind": "lost"})
    with pytest.raises(Exception, match="disconnected"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert len(list(api.list_repo_tree(REPO))) == 3


def test_a_corrupted_upload_shows_in_nothing_but_the_content(
    api: HfApi, folder: Path, tmp_path: Path
):
    api.create_repo(REPO)
    ask_for(api, {"match": "PUT /lfs", "kind": "corrupt"})
    api.upload_folder(repo_id=REPO, folder_path=folder)
    copied = hf_hub_download(
        REPO, "model.safetensors", endpoint=api.endpoint, token=TOKEN, cache_dir=tmp_path / "cache"
    )
    sizes = [path.stat().st_size for path in (Path(copied), folder / "model.safetensors")]
    assert sizes[0] == sizes[1]
    assert Path(copied).read_bytes() != (folder / "model.safetensors").read_bytes()
