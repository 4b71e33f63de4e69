"""Token permissions on the loopback Hub, through the real client."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, serving
from safetensors.torch import save_file

from rm_ray.errors import InputError
from rm_ray.publish import access, hub
from rm_ray.publish.access import find_access, find_obstacle, list_model, read_hub_weight
from rm_ray.publish.hub import HubAwayError, HubRepo

REPO = "someone/model"


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(tmp_path / "hub") as address:
        yield address


def publish(endpoint: str, folder: Path, **files: str) -> None:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    repo = HubRepo.open(REPO, private=True, patience_s=20.0, endpoint=endpoint)
    repo.publish(folder, "v1", message="a model")
    repo.promote("v1", message="a model")


def fault(endpoint: str, **what: object) -> None:
    request = urllib.request.Request(f"{endpoint}/_faults", json.dumps([what]).encode())
    urllib.request.urlopen(request).close()


def test_a_token_may_write_to_its_users_repositories(endpoint, tmp_path):
    found = find_access(REPO, endpoint=endpoint)
    assert (found.user, found.exists, found.obstacle) == ("someone", False, "")
    publish(endpoint, tmp_path / "model", config__json="{}")
    assert find_access(REPO, endpoint=endpoint).exists


def test_the_hub_is_not_asked_where_the_user_is_offline(endpoint, tmp_path, monkeypatch):
    publish(endpoint, tmp_path / "model", config__json="{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubAwayError, match=r"offline mode is enabled.*HF_HUB_OFFLINE"):
        find_access(REPO, endpoint=endpoint)


def test_a_token_may_not_write_to_another_users_repository(endpoint):
    found = find_access("another/model", endpoint=endpoint)
    assert found.obstacle == "the token's user 'someone' is neither 'another' nor a member of it"


@pytest.mark.parametrize("answers_ranges", [True, False])
def test_one_weight_is_read_without_the_others(endpoint, tmp_path, monkeypatch, answers_ranges):
    """From a server that answers a range with the range, as the Hub's do, or with everything."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = {
        "a": torch.randn(3, 4), "b": torch.tensor([0.25], dtype=torch.bfloat16), "c": torch.ones(2),
    }  # fmt: skip
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    repo = HubRepo.open(REPO, private=True, patience_s=20.0, endpoint=endpoint)
    repo.publish(folder, "v1", message="a model")
    repo.promote("v1", message="a model")
    asked: list[str] = []

    class Ranges:
        def get(self, url: str, *, headers: dict[str, str]) -> httpx2.Response:
            asked.append(headers["Range"])
            response = huggingface_hub.get_session().get(url, headers=headers)
            first, last = map(int, headers["Range"].removeprefix("bytes=").split("-"))
            if not answers_ranges:
                return response
            part = response.content[first : last + 1]
            return httpx2.Response(206, content=part, request=response.request)

    monkeypatch.setattr(access, "get_session", Ranges)
    for name, weight in weights.items():
        read = read_hub_weight(REPO, name, endpoint=endpoint)
        assert (read.dtype, read.shape) == (weight.dtype, weight.shape)
        assert torch.equal(read, weight)
    sizes = [
        int(b) - int(a) + 1 for a, b in (one.removeprefix("bytes=").split("-") for one in asked)
    ]
    assert sizes == [8, 48, 8, 2, 8, 8]


def test_a_wrong_or_missing_token_is_an_input_error(endpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="the token is wrong or has expired"):
        find_access(REPO, endpoint=endpoint)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="there is no token"):
        find_access(REPO, endpoint=endpoint)


@pytest.mark.parametrize("kind", ["refuse", "slow"])
def test_a_hub_that_does_not_answer_is_away(endpoint, kind, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_S", 0.5)
    fault(endpoint, match="whoami", kind=kind, seconds=1.0, count=9)
    with pytest.raises(HubAwayError, match="does not answer"):
        find_access(REPO, endpoint=endpoint)


def token(**fields: object) -> dict:
    return {"name": "someone", "auth": {"accessToken": fields}}


def test_roles_and_scopes_are_judged():
    scope = {"entity": {"name": "team"}, "permissions": ["repo.content.read", "repo.write"]}
    fine = token(role="fineGrained", fineGrained={"scoped": [scope]})
    assert find_obstacle(fine, "team/model") == ""
    assert "no 'repo.write' for 'someone'" in find_obstacle(fine, "someone/model")
    assert "role is 'read'" in find_obstacle(token(role="read"), "someone/model")
    member = token(role="write") | {"orgs": [{"name": "team", "roleInOrg": "read"}]}
    assert "in 'team' is 'read'" in find_obstacle(member, "team/model")
    assert find_obstacle(member, "someone/model") == ""


def test_a_models_files_and_index_are_listed_without_its_weights(endpoint, tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors"}}
    files = {"config__json": "{}", "model__safetensors__index__json": json.dumps(index)}
    publish(endpoint, tmp_path / "model", **files)
    listing = list_model(REPO, endpoint=endpoint)
    assert listing.files == {"config.json", "model.safetensors.index.json"}
    assert listing.index == index
    with pytest.raises(InputError, match="no such repository"):
        list_model("someone/nothing", endpoint=endpoint)
    fault(endpoint, match="config.json", kind="status", status=403, code="GatedRepo", count=9)
    with pytest.raises(InputError, match="it is gated"):
        list_model(REPO, revision="v1", endpoint=endpoint)


def test_a_missing_path_is_not_a_hub_name(endpoint):
    with pytest.raises(InputError, match="neither a folder nor a name on the Hugging Face Hub"):
        list_model("/data/no/model", endpoint=endpoint)
