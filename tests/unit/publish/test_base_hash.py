"""The hash of a base model: the same content gives the same one, in a folder and on the Hub."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from base_models import empty_hub, make, scatter

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.publish import base_hash
from rm_ray.publish.base_hash import hash_base
from rm_ray.publish.hub import HubAwayError


def hashed(folder: Path | str) -> str:
    return hash_base(ModelConfig(name_or_path=str(folder)))


def test_a_folder_is_hashed_by_its_config_and_weights(tmp_path: Path):
    for name in ("one", "same"):
        make(tmp_path / name, "llama")
    make(tmp_path / "sharded", "llama", max_shard_size="50KB")
    first = hashed(tmp_path / "one")
    assert first == hashed(tmp_path / "same") != hashed(tmp_path / "sharded")
    (tmp_path / "one" / "README.md").write_text("other words")
    assert hashed(tmp_path / "one") == first
    config = tmp_path / "one" / "config.json"
    text = config.read_text()
    config.write_text(json.dumps({**json.loads(text), "rms_norm_eps": 1e-3}))
    assert hashed(tmp_path / "one") != first
    config.write_text(text)
    weights = tmp_path / "one" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert hashed(tmp_path / "one") != first


def test_random_weights_are_those_of_a_config_and_a_version_of_torch(monkeypatch):
    first = hashed("builtin")
    assert first == hashed("builtin")
    monkeypatch.setattr(base_hash.torch, "__version__", "1.0")
    assert hashed("builtin") != first


def test_a_file_of_the_hubs_cache_is_known_by_its_name(tmp_path: Path):
    blob = tmp_path / ("a" * 64)
    blob.write_bytes(b"weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    plain = tmp_path / "config.json"
    plain.write_bytes(b"{}")
    assert base_hash._hash_files({path.name: path for path in (link, plain)}) == {
        "model.safetensors": "a" * 64,
        "config.json": hashlib.sha256(b"{}").hexdigest(),
    }


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "40KB"}])
def test_a_folder_and_the_hub_agree_before_and_after_the_download(tmp_path, monkeypatch, options):
    make(tmp_path / "model", "llama", **options)
    with empty_hub(tmp_path, monkeypatch) as hub:
        hub.create_repo("someone/model")
        hub.upload_folder(repo_id="someone/model", folder_path=tmp_path / "model")
        expected = hashed(tmp_path / "model")
        assert hashed("someone/model") == expected
        huggingface_hub.snapshot_download("someone/model")
        assert hashed("someone/model") == expected


def test_an_adapters_config_and_weights_are_hashed_apart_from_those_of_its_base(tmp_path: Path):
    make(tmp_path / "base", "llama")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    fields = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA"}
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    weights.write_bytes(b"weights")
    found = set()
    for alpha in (8, 80):
        config.write_text(json.dumps({**fields, "lora_alpha": alpha}))
        found.add(hashed(adapter))
    assert len(found) == 2
    weights.write_bytes(b"another")
    assert hashed(adapter) not in found


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", ""])
def test_a_base_that_went_missing_is_named(tmp_path: Path, missing):
    base = tmp_path / "base"
    make(base, "llama")
    hashed(base)
    (base / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"^model.name_or_path '{base}': .*(no longer|missing)"):
        hashed(base)


def test_a_file_is_read_again_only_after_a_change(tmp_path: Path, monkeypatch):
    make(tmp_path, "llama")
    read = []
    describe = base_hash.describe_file
    monkeypatch.setattr(base_hash, "describe_file", lambda p: read.append(p.name) or describe(p))
    first = hashed(tmp_path)
    assert hashed(tmp_path) == first and sorted(read) == ["config.json", "model.safetensors"]
    config = tmp_path / "config.json"
    config.write_text(config.read_text() + "\n")
    assert hashed(tmp_path) != first and sorted(read)[:2] == ["config.json"] * 2 and len(read) == 3


def test_shards_of_one_name_in_several_folders_are_all_hashed(tmp_path: Path):
    make(tmp_path, "llama", max_shard_size="50KB")
    scatter(tmp_path)
    first, (_, last) = hashed(tmp_path), sorted(tmp_path.glob("part*/w.safetensors"))[-2:]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert hashed(tmp_path) != first


def test_the_hub_that_does_not_answer_is_no_missing_base(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubAwayError, match=r"config\.json is not on this machine"):
        hashed("someone/model")
