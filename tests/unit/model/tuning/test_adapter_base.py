"""Base models that are adapters: read, merged, or refused. Training on: ``test_tuned_run.py``."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from base_models import empty_hub, make
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model
from rm_ray.model.tuning.adapter_base import read_adapter
from rm_ray.model.tuning.lora import add_adapters
from rm_ray.model.tuning.trainable import choose_trained
from rm_ray.pretrained import adapter_of, base_model
from rm_ray.publish.base_hash import hash_base
from rm_ray.publish.base_model import find_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make(tmp_path / "base", "llama")
    return tmp_path / "base"


def make_adapter(base: Path, folder: Path, **options: object) -> Path:
    """Save an adapter of a language model, whose values are no zeros."""
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return folder


def build(path: Path | str, **options: object):
    config = ResolvedModel(name_or_path=str(path), tokenizer="builtin")
    return build_reward_model(config, load_tokenizer("builtin"), seed=0, layout="padded", **options)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_an_adapter_of_a_language_model_is_merged_like_peft_merges_it(base, tmp_path, options):
    folder = make_adapter(base, tmp_path / "adapter", **options)
    expected = peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().state_dict()
    model = build(folder)
    found = {n.removeprefix("classifier."): w for n, w in model.state_dict().items()}
    assert model.kept_head is None and "lora" not in " ".join(found)
    for name, weight in found.items():
        if name != "score.weight":
            torch.testing.assert_close(weight[:800], expected[name][:800], rtol=0, atol=1e-6)
    plain = dict(build(base).named_parameters())
    key = "classifier.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(model.state_dict()[key], plain[key])
    assert all(p.requires_grad for p in model.parameters())
    half = build(folder, dtype=torch.bfloat16).state_dict()[key]
    assert torch.equal(half, model.state_dict()[key].bfloat16())


def test_the_base_is_that_of_the_adapter_and_both_are_in_the_hash(base, tmp_path):
    folder = make_adapter(base, tmp_path / "adapter")
    config = ModelConfig(name_or_path=str(folder))
    name, adapter = base_model(config), adapter_of(config)
    assert adapter is not None and adapter.name == str(folder)
    assert (name.name, name.kind) == (str(base), "folder")
    assert adapter_of(ModelConfig(name_or_path=str(base))) is None
    found = find_base(config)
    assert found is not None and found.head is None
    before = hash_base(config)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, folder / "adapter_model.safetensors")
    assert hash_base(config) != before != hash_base(ModelConfig(name_or_path=str(base)))


def test_a_merged_model_that_keeps_the_adapters_config_is_a_model(base, tmp_path):
    folder = make_adapter(base, tmp_path / "adapter")
    (base / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    assert adapter_of(ModelConfig(name_or_path=str(base))) is None


def rewrite(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_an_adapter_whose_base_is_missing_names_both(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = make_adapter(base, tmp_path / "adapter")
    rewrite(folder, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(InputError) as refused:
        build(folder)
    assert str(refused.value).startswith(
        f"model.name_or_path '{folder}' is an adapter, and its base model '{tmp_path / 'gone'}' "
        "cannot be loaded"
    )
    rewrite(folder, base_model_name_or_path=None)
    with pytest.raises(InputError, match="does not name its base model"):
        build(folder)


def test_adapters_that_cannot_be_merged_are_refused(base, tmp_path):
    folder = make_adapter(base, tmp_path / "adapter")
    name = adapter_of(ModelConfig(name_or_path=str(folder)))
    assert name is not None
    weights = load_file(folder / "adapter_model.safetensors")
    strange = {n.replace("layers.1.", "layers.7."): w for n, w in weights.items()}
    save_file(strange, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="cannot be merged into its base model: its weights do"):
        build(folder)
    rewrite(folder, layer_replication=[[0, 2], [1, 2]])
    with pytest.raises(InputError, match=r"repeats layers of its base model \(layer_replication\)"):
        read_adapter(name)
    rewrite(folder, layer_replication=None)
    rewrite(folder, peft_type="IA3", target_modules=["k_proj"], feedforward_modules=[])
    with pytest.raises(InputError, match=r"adapter of type IA3\. Only LoRA is merged"):
        read_adapter(name)
    rewrite(folder, peft_type="LORA")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"is missing"):
        read_adapter(name)


def test_an_adapter_on_the_hub_is_merged_into_its_base_on_the_hub(base, tmp_path, monkeypatch):
    folder = make_adapter(base, tmp_path / "adapter")
    expected = build(folder).state_dict()
    rewrite(folder, base_model_name_or_path="someone/base")
    with empty_hub(tmp_path, monkeypatch) as hub:
        for name, path in (("someone/base", base), ("someone/adapter", folder)):
            hub.create_repo(name)
            hub.upload_folder(repo_id=name, folder_path=path)
        config = ModelConfig(name_or_path="someone/adapter")
        assert (base_model(config).name, base_model(config).kind) == ("someone/base", "hub")
        before = hash_base(config)
        model = build("someone/adapter")
        assert hash_base(config) == before
        rewrite(folder, base_model_name_or_path="someone/gone")
        hub.create_repo("someone/orphan")
        hub.upload_folder(repo_id="someone/orphan", folder_path=folder)
        with pytest.raises(
            InputError,
            match=r"'someone/orphan' is an adapter, and its base model 'someone/gone' cannot be",
        ):
            build("someone/orphan")
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_an_adapter_left_beside_a_merged_model_is_not_added_again(base, tmp_path, trainable):
    """Whether the merged model is read lean or whole, and by clients of the score command."""
    folder = make_adapter(base, tmp_path / "adapter")
    merged = peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()
    merged.save_pretrained(tmp_path / "clean")
    merged.save_pretrained(tmp_path / "left")
    for file in folder.glob("adapter_*"):
        shutil.copy(file, tmp_path / "left")
    expected, found = (build(tmp_path / name).state_dict() for name in ("clean", "left"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    model = build(tmp_path / "left")
    lora = LoraConfig(rank=3 if trainable == "all" else 0)
    config = ModelConfig(trainable=trainable)
    choose_trained(model, config, lora, seed=0, dtype=torch.float32)
    ranks = {len(p) for name, p in model.named_parameters() if ".lora_A." in name}
    assert ranks == ({3} if lora.is_on else set())
    with pytest.raises(AssertionError, match="has adapters already"):
        for _ in range(2):
            add_adapters(model, LoraConfig(rank=2), seed=0)


def test_buffers_are_those_of_the_same_model_in_a_folder(base, tmp_path):
    """Rotary angles in bfloat16 would turn distant tokens wrongly."""
    folder = make_adapter(base, tmp_path / "adapter")
    expected, found = (
        dict(build(path, dtype=torch.bfloat16).named_buffers()) for path in (base, folder)
    )
    assert expected.keys() == found.keys() != set()
    for name, buffer in expected.items():
        assert buffer.dtype == found[name].dtype and torch.equal(buffer, found[name]), name


def test_an_adapter_of_the_head_is_refused(base, tmp_path):
    labels = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    labels.save_pretrained(tmp_path / "scored")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "score"])
    peft.get_peft_model(labels, config).save_pretrained(tmp_path / "adapter")
    rewrite(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "scored"))
    with pytest.raises(
        InputError, match=r"adapts the head itself \(score.lora_\*\).*merge_and_unl"
    ):
        build(tmp_path / "adapter")


BROKEN = {
    "a list": ("[]", "adapter_config.json holds a list instead of settings"),
    "no type": ('{"base_model_name_or_path": "BASE"}', "of type unknown .no peft_type"),
    "a new type": ('{"base_model_name_or_path": "BASE", "peft_type": "NEW"}', "of type NEW"),
    "on an adapter": (
        '{"base_model_name_or_path": "ADAPTER", "peft_type": "LORA"}',
        "its base model '.*adapter' is an adapter too. Merge that one",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_config_of_an_adapter_is_named(base, tmp_path, kind):
    folder, (text, message) = make_adapter(base, tmp_path / "adapter"), BROKEN[kind]
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    text = text.replace("BASE", str(base)).replace("ADAPTER", str(folder))
    (broken / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        build(broken)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04abc"])
def test_a_broken_file_of_an_adapter_is_named(base, tmp_path, content):
    folder = make_adapter(base, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"^model.name_or_path '.*': adapter_model.bin is incompl"):
        build(folder)
