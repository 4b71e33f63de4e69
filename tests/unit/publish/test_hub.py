"""Publishing to the loopback Hub through the real client, with faults injected."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import ask_for

from rm_ray.publish import hub
from rm_ray.publish.hub import (
    HubAwayError,
    HubContentsError,
    HubRefusedError,
    HubRepo,
    open_api,
)

REPO = "someone/model"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text('{"num_labels": 1}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def open_repo(endpoint: str, *, patience_s: float = 120.0) -> HubRepo:
    return HubRepo.open(REPO, private=True, patience_s=patience_s, endpoint=endpoint)


def expected(export: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in export.iterdir()}


def test_a_version_is_complete_under_its_tag_and_then_on_main(endpoint, export, contents):
    repo = open_repo(endpoint)
    commit = repo.publish(export, "step-1", message="first")
    assert contents(REPO, "step-1") == expected(export)
    assert contents(REPO, "main") == {}
    repo.promote("step-1", message="best")
    assert contents(REPO, "main") == expected(export)
    assert open_repo(endpoint).publish(export, "step-1", message="again") == commit


def test_a_published_version_is_not_uploaded_again(endpoint, export):
    repo = open_repo(endpoint)
    repo.publish(export, "step-1", message="first")
    repo.promote("step-1", message="best")
    before = len(ask_for(endpoint))
    repo.publish(export, "step-1", message="again")
    repo.promote("step-1", message="again")
    new = ask_for(endpoint)[before:]
    assert not [line for line in new if "commit" in line or "lfs" in line or "POST" in line]


def test_main_holds_exactly_the_promoted_version(endpoint, export, contents):
    repo = open_repo(endpoint)
    (export / "old.txt").write_text("gone later")
    repo.publish(export, "step-1", message="first")
    repo.promote("step-1", message="first")
    (export / "old.txt").unlink()
    (export / "config.json").write_text('{"num_labels": 1, "more": 2}')
    repo.publish(export, "step-2", message="second")
    repo.promote("step-2", message="second")
    assert contents(REPO, "main") == expected(export)
    assert "old.txt" in contents(REPO, "step-1")


FAULTS = {
    "refused": {"kind": "refuse"},
    "500": {"kind": "status", "status": 500},
    "503": {"kind": "status", "status": 503},
    "too many": {"kind": "status", "status": 429},
    "no answer in time": {"kind": "slow", "seconds": 0.8},
    "slow": {"kind": "slow", "seconds": 0.3},
    "answer lost": {"kind": "lost"},
}
CALLS = [
    "repos/create",
    "/branch/",
    "/preupload/",
    "objects/batch",
    "PUT /lfs",
    "/commit/",
    "/tag/",
]


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        pytest.param(
            call,
            fault,
            marks=[] if fault in ("503", "answer lost") or call == "/commit/" else pytest.mark.slow,
        )
        for call in CALLS
        for fault in FAULTS
    ],
)
def test_a_fault_at_any_call_changes_nothing(endpoint, export, contents, monkeypatch, call, fault):
    if fault == "no answer in time":
        monkeypatch.setattr(hub, "ANSWER_S", 0.5)
    ask_for(endpoint, {"match": call, **FAULTS[fault]})
    repo = open_repo(endpoint)
    repo.publish(export, "step-1", message="first")
    repo.promote("step-1", message="best")
    for revision in ("step-1", "main"):
        assert contents(REPO, revision) == expected(export)
    asked = sum(call in line for line in ask_for(endpoint))
    usual = 2 if call == "/commit/" else 1  # main is a commit too
    is_done = (call, fault) == ("/commit/", "answer lost")  # and found, without another one
    assert asked > usual or fault == "slow" or is_done


def test_a_corrupted_upload_is_never_tagged(endpoint, export):
    ask_for(endpoint, {"match": "PUT /lfs", "kind": "corrupt", "count": 99})
    repo = open_repo(endpoint)
    with pytest.raises(HubContentsError, match="other contents than"):
        repo.publish(export, "step-1", message="first")
    assert repo.api.list_repo_refs(REPO).tags == []


def test_a_corrupted_upload_is_repeated(endpoint, export, contents):
    ask_for(endpoint, {"match": "PUT /lfs", "kind": "corrupt"})
    open_repo(endpoint).publish(export, "step-1", message="first")
    assert contents(REPO, "step-1") == expected(export)


def test_main_may_have_a_different_card(endpoint, export, contents, tmp_path):
    (export / "README.md").write_text("as it was then")
    repo = open_repo(endpoint)
    repo.publish(export, "step-1", message="first")
    instead = tmp_path / "instead"
    instead.mkdir()
    (instead / "README.md").write_text("as it is in the end")
    for _ in range(2):  # the second time is a no-op
        repo.promote("step-1", message="best", instead=instead)
    assert contents(REPO, "main") == expected(export) | {"README.md": b"as it is in the end"}
    assert contents(REPO, "step-1") == expected(export)
    commits = [line for line in ask_for(endpoint) if "/commit/main" in line]
    assert len(commits) == 1


def test_a_concurrent_change_of_main_is_retried(endpoint, export, contents, monkeypatch):
    """Two runs that end simultaneously leave one complete model, not a mix of files."""
    ours, theirs = open_repo(endpoint), open_repo(endpoint)
    ours.publish(export, "a", message="first")
    (export / "config.json").write_text('{"num_labels": 1, "of": "b"}')
    (export / "model.safetensors").write_bytes(b"b" * 5_000)
    theirs.publish(export, "b", message="second")
    real, done = ours.api.create_commit, []

    def commit(*arguments, **options):
        if not done:
            done.append(theirs.promote("b", message="b"))
        return real(*arguments, **options)

    monkeypatch.setattr(ours.api, "create_commit", commit)
    ours.promote("a", message="a")
    assert contents(REPO, "main") == contents(REPO, "a")


def test_an_expired_link_is_requested_again(endpoint, export, contents):
    ask_for(endpoint, {"match": "PUT /lfs", "kind": "status", "status": 403})
    open_repo(endpoint).publish(export, "step-1", message="first")
    assert contents(REPO, "step-1") == expected(export)


def test_two_processes_publishing_the_same_version_agree(endpoint, export, contents):
    repos = [open_repo(endpoint) for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(repo.publish, export, "step-1", message="first") for repo in repos]
    assert len({each.result() for each in done}) == 1
    assert contents(REPO, "step-1") == expected(export)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "the token is wrong"), (402, "unpaid"), (403, "may not write"), (413, "exceeds")],
)
def test_errors_that_a_retry_cannot_fix_are_raised_immediately(endpoint, export, status, remedy):
    repo = open_repo(endpoint)
    fault = {"match": "/preupload/", "kind": "status", "status": status, "count": 99}
    ask_for(endpoint, fault)
    with pytest.raises(HubRefusedError, match=remedy):
        repo.publish(export, "step-1", message="first")
    assert sum("/preupload/" in line for line in ask_for(endpoint)) == 1


def test_nothing_is_tried_again_where_the_user_is_offline(endpoint, export, monkeypatch):
    repo = open_repo(endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.time, "sleep", lambda _: pytest.fail("it waits to try again"))
    with pytest.raises(HubRefusedError, match="since HF_HUB_OFFLINE is set: unset it"):
        repo.publish(export, "step-1", message="first")


def test_retries_end_when_the_hub_stays_away(endpoint, export):
    repo = open_repo(endpoint, patience_s=1.0)
    ask_for(endpoint, {"match": "/branch/", "kind": "status", "status": 503, "count": 99})
    with pytest.raises(HubAwayError, match="503"):
        repo.publish(export, "step-1", message="first")


def test_a_tag_of_another_version_is_refused(endpoint, export):
    repo = open_repo(endpoint)
    repo.publish(export, "step-1", message="first")
    (export / "config.json").write_text('{"num_labels": 1, "of": "another"}')
    with pytest.raises(HubContentsError, match=r"has other contents than .*: config\.json"):
        repo.publish(export, "step-1", message="first")


def test_opening_a_repository_leaves_requests_of_other_threads_alone(endpoint):
    repo = open_repo(endpoint)
    ask_for(endpoint, {"match": "whoami", "kind": "slow", "seconds": 0.3})
    with ThreadPoolExecutor(1) as pool:
        user = pool.submit(repo.api.whoami)
        time.sleep(0.1)
        assert open_api(endpoint).repo_exists(REPO)
    assert user.result()["name"] == "someone"
