"""A run's base model in a folder, on the Hub and in the cache."""

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from base_models import empty_hub, found, make, refusal, rename
from reward_heads import build, head_weight, save

from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.base_check import BaseModel
from rm_ray.publish.base_model import find_base, log_base_weights
from rm_ray.publish.hub import HubAwayError


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make(tmp_path / "llama", "llama")
    return tmp_path / "llama"


def test_the_handling_of_the_head_is_logged(tmp_path, llama, caplog):
    make(tmp_path / "labels", "llama", "SequenceClassification")
    scored = str(save(tmp_path / "scored", {"value_head.weight": head_weight()}))
    caplog.set_level("INFO", "rm_ray")
    logged = [
        log_base_weights(ModelConfig(**fields))
        for fields in (
            {"name_or_path": str(llama)},
            {"name_or_path": str(tmp_path / "labels"), "head": "new"},
            {"name_or_path": scored},
            {"name_or_path": scored, "head": "new"},
            {},
        )
    ]
    assert logged == ["new", "new", "value_head.weight", "new", "new"]
    assert caplog.messages == [
        "head: newly initialized",
        f"head: newly initialized; the head of '{tmp_path / 'labels'}' (score.weight) is not used",
        f"head: kept from '{scored}' (value_head.weight)",
        f"head: newly initialized; the head of '{scored}' (value_head.weight) is not used",
    ]
    with pytest.raises(InputError, match="random weights"):
        log_base_weights(ModelConfig(head="keep"))


def test_custom_code_is_not_requested(llama):
    config = json.loads((llama / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (llama / "config.json").write_text(json.dumps(config | own))
    (llama / "mine.py").write_text("raise SystemExit\n")
    assert "custom code" in refusal(llama)


HEADS = {
    "zero": torch.zeros(1), "biased": torch.tensor([0.5]),
}  # fmt: skip


def test_a_head_on_the_hub_is_the_same_before_and_after_the_download(tmp_path, monkeypatch):
    """Its bias is read without the file; workers read the files that transformers has cached."""
    tokenizer = load_tokenizer("builtin")
    with empty_hub(tmp_path, monkeypatch) as hub:
        for storage in ("whole", "sharded", "apart", "bin"):
            for name, bias in HEADS.items():
                repo = f"someone/{name}-{storage}".replace(" ", "-")
                head = {"v_head.summary.weight": head_weight(), "v_head.summary.bias": bias}
                folder = save(tmp_path / repo, head, storage)
                hub.create_repo(repo)
                hub.upload_folder(repo_id=repo, folder_path=folder)
                config = ModelConfig(name_or_path=repo)
                if name == "biased":
                    if storage == "bin":  # has no headers to read
                        assert find_base(config) is None
                    else:
                        with pytest.raises(InputError, match=r"v_head.summary.bias is 0.5"):
                            find_base(config)
                    with pytest.raises(InputError, match=r"v_head.summary.bias is 0.5"):
                        build(repo, tokenizer)
                    continue
                if storage == "bin":
                    assert log_base_weights(config) == "unknown"
                    assert log_base_weights(replace(config, head="new")) == "new"
                else:
                    assert log_base_weights(config) == "v_head.summary.weight"
                model = build(repo, tokenizer)
                assert model.kept_head == "v_head.summary.weight"
                assert torch.equal(model.classifier.score.weight, head_weight())
                assert log_base_weights(config) == "v_head.summary.weight"  # now from the cache


def test_a_model_on_the_hub_is_checked_by_its_headers(tmp_path, monkeypatch):
    """By headers on the Hub before the weights are downloaded, by local files afterwards."""
    with empty_hub(tmp_path, monkeypatch) as hub:
        for repo, options in {"whole": {}, "shards": {"max_shard_size": "40KB"}}.items():
            make(tmp_path / repo, "llama", **options)
            hub.create_repo(f"someone/{repo}")
            hub.upload_folder(repo_id=f"someone/{repo}", folder_path=tmp_path / repo)
        make(tmp_path / "wrapped", "llama")
        rename(tmp_path / "wrapped", "module.")
        hub.create_repo("someone/wrapped")
        hub.upload_folder(repo_id="someone/wrapped", folder_path=tmp_path / "wrapped")
        expected = BaseModel(num_weights=21)
        assert found("someone/whole") == found("someone/shards") == expected
        with pytest.raises(InputError, match=r"'someone/wrapped' lacks 20 of .* 'module\.'"):
            found("someone/wrapped")
        for name in ("config.json", "model.safetensors"):
            huggingface_hub.hf_hub_download("someone/whole", name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert found("someone/whole") == expected  # from the cache
    with pytest.raises(HubAwayError):
        found("someone/shards")  # only its config is cached
