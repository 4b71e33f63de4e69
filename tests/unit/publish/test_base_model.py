"""A run's base model in a folder, on the Hub and in the cache."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from base_models import found, make, refusal, rename
from hub_server import TOKEN, serving

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.base_check import BaseModel
from rm_ray.publish.base_model import log_base_weights
from rm_ray.publish.hub import HubAwayError


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make(tmp_path / "llama", "llama")
    return tmp_path / "llama"


def test_the_handling_of_the_head_is_logged(tmp_path, llama, caplog):
    make(tmp_path / "scored", "llama", "SequenceClassification")
    caplog.set_level("INFO", "rm_ray")
    log_base_weights(ModelConfig(name_or_path=str(llama)))
    log_base_weights(ModelConfig(name_or_path=str(tmp_path / "scored")))
    log_base_weights(ModelConfig())
    assert caplog.messages == [
        "head: newly initialized",
        f"head: newly initialized; the head of '{tmp_path / 'scored'}' is not used",
    ]


def test_custom_code_is_not_requested(llama):
    config = json.loads((llama / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (llama / "config.json").write_text(json.dumps(config | own))
    (llama / "mine.py").write_text("raise SystemExit\n")
    assert "custom code" in refusal(llama)


def test_a_model_on_the_hub_is_checked_by_its_headers(tmp_path, monkeypatch):
    """By headers on the Hub before the weights are downloaded, by local files afterwards."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(tmp_path / "hub") as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub = huggingface_hub.HfApi(endpoint=endpoint)
        for repo, options in {"whole": {}, "shards": {"max_shard_size": "40KB"}}.items():
            make(tmp_path / repo, "llama", **options)
            hub.create_repo(f"someone/{repo}")
            hub.upload_folder(repo_id=f"someone/{repo}", folder_path=tmp_path / repo)
        make(tmp_path / "wrapped", "llama")
        rename(tmp_path / "wrapped", "module.")
        hub.create_repo("someone/wrapped")
        hub.upload_folder(repo_id="someone/wrapped", folder_path=tmp_path / "wrapped")
        expected = BaseModel(num_weights=21, has_head=False)
        assert found("someone/whole") == found("someone/shards") == expected
        with pytest.raises(InputError, match=r"'someone/wrapped' lacks 20 of .* 'module\.'"):
            found("someone/wrapped")
        for name in ("config.json", "model.safetensors"):
            huggingface_hub.hf_hub_download("someone/whole", name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert found("someone/whole") == expected  # from the cache
    with pytest.raises(HubAwayError):
        found("someone/shards")  # only its config is cached
