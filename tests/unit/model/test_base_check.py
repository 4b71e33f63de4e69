"""Base models in real folders, whole and in all the ways in which they are not."""

import json
import os
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, serving
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rm_ray.config.train_config import ModelConfig
from rm_ray.data.tokens.tokenization import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.attention import PACKABLE
from rm_ray.model.base_check import BaseModel
from rm_ray.model.reward_model import build_reward_model
from rm_ray.preflight import checks
from rm_ray.publish.base_model import find_base, log_base_weights
from rm_ray.publish.hub import HubAwayError

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 800, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip

KINDS = {
    "CausalLM": MODEL_FOR_CAUSAL_LM_MAPPING,
    "bare": MODEL_MAPPING,
    "SequenceClassification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("builtin")


def make(folder: Path, family: str, kind: str = "CausalLM", **options: object) -> PreTrainedModel:
    """Save a tiny model of a family."""
    config = AutoConfig.for_model(family, **SIZES, num_labels=3)
    torch.manual_seed(1)
    model: PreTrainedModel = KINDS[kind][type(config)](config)
    model.save_pretrained(folder, **options)
    return model


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make(tmp_path / "llama", "llama")
    return tmp_path / "llama"


def found(folder: Path | str) -> BaseModel | None:
    return find_base(ModelConfig(name_or_path=str(folder)))


def refusal(folder: Path) -> str:
    """Return why a model is refused, in one paragraph that names it."""
    with pytest.raises(InputError) as refused:
        found(folder)
    text = str(refused.value)
    assert text.startswith(f"model.name_or_path '{folder}'")
    assert "\n" not in text
    return text


def rename(folder: Path, wrapper: str) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {f"{wrapper}{name}": weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_every_family_is_found_whole_and_is_read_so(tmp_path, tokenizer, family):
    """As whichever class saved it; names of the files are those that transformers maps."""
    for kind in KINDS:
        saved = make(tmp_path / kind, family, kind)
        base = found(tmp_path / kind)
        assert base is not None
        assert base.has_head == (kind == "SequenceClassification")
        assert base.unused == ()
        config = ModelConfig(name_or_path=str(tmp_path / kind))
        read = build_reward_model(config, tokenizer, seed=0).classifier.base_model.state_dict()
        for name, weight in saved.base_model.state_dict().items():
            assert torch.equal(read[name], weight), (kind, name)


def test_experts_that_transformers_joins_are_counted_one_by_one(tmp_path):
    make(tmp_path, "mixtral")
    assert found(tmp_path) is not None
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if ".experts.3." in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refusal(tmp_path)


@pytest.mark.parametrize(
    ("wrapper", "told"),
    [("_orig_mod.", "torch.compile"), ("module.", "DistributedDataParallel"),
     ("_fsdp_wrapped_module.", "FSDP"), ("base_model.model.", "PEFT"), ("actor.", "rename them")],
)  # fmt: skip
def test_names_of_a_wrapper_are_told_as_such(llama, wrapper, told):
    rename(llama, wrapper)
    text = refusal(llama)
    assert "lacks 20 of its 20 weights (model.embed_tokens.weight, " in text
    assert "and 17 more" in text
    assert f"'{wrapper}'" in text
    assert told in text


def test_a_folder_with_half_of_the_weights_is_refused(llama):
    weights = load_file(llama / "model.safetensors")
    half = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    save_file(half, llama / "model.safetensors", {"format": "pt"})
    text = refusal(llama)
    assert "lacks 9 of its 20 weights (model.layers.1.input_layernorm.weight, " in text
    assert "not in its files" in text


def test_a_file_without_weights_is_refused(llama):
    save_file({}, llama / "model.safetensors", {"format": "pt"})
    assert "its files are empty" in refusal(llama)


def test_weights_of_other_shapes_are_refused_with_both(llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    text = refusal(llama)
    assert "model.layers.0.mlp.down_proj.weight is [32, 48] and should be [32, 64] (and 5" in text


def test_weights_without_a_place_are_named(llama, caplog):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    base = found(llama)
    assert base is not None
    assert len(base.unused) == 9
    assert base.unused[0] == "model.layers.1.input_layernorm.weight"
    caplog.set_level("INFO", "rm_ray")
    log_base_weights(ModelConfig(name_or_path=str(llama)))
    assert "no place for 9 weights" in caplog.text
    verdict = checks.check_model(ModelConfig(name_or_path=str(llama)), lambda: base)
    assert verdict.outcome == "warning"


def test_what_becomes_of_a_head_is_said(tmp_path, llama, caplog):
    make(tmp_path / "scored", "llama", "SequenceClassification")
    caplog.set_level("INFO", "rm_ray")
    log_base_weights(ModelConfig(name_or_path=str(llama)))
    log_base_weights(ModelConfig(name_or_path=str(tmp_path / "scored")))
    log_base_weights(ModelConfig())
    assert caplog.messages == [
        "head: drawn anew",
        f"head: drawn anew; the one that '{tmp_path / 'scored'}' has is not used",
    ]


def test_files_that_are_cut_short_are_named(tmp_path):
    make(tmp_path, "llama", max_shard_size="40KB")
    file = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = file.read_bytes()
    assert found(tmp_path) is not None
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert f"{file.name} is not whole" in refusal(tmp_path)
    file.unlink()
    assert f"{file.name} is missing" in refusal(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-5])
    assert "the index of the model's weight files is not whole" in refusal(tmp_path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_weights_are_read_without_their_values(llama, is_zip):
    weights = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    file = llama / "pytorch_model.bin"
    torch.save(weights, file, _use_new_zipfile_serialization=is_zip)
    assert found(llama) == BaseModel(num_weights=21, has_head=False)
    whole = file.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert "pytorch_model.bin is not whole" in refusal(llama)


def test_what_is_no_weight_file_is_told(llama):
    (llama / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(llama)
    file = llama / "pytorch_model.bin"
    torch.save({"a": Calls()}, file)
    assert "would be run as code" in refusal(llama)
    file.write_text("<html>not found</html>")
    assert "no file of weights" in refusal(llama)
    torch.save([torch.zeros(3)], file)
    assert "holds a list" in refusal(llama)


class Calls:
    """A pickle that would call something."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.getcwd, ()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_pointers_of_git_lfs_are_told(llama, name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"
    (llama / name).write_text(text)
    assert f"{name} is a pointer of Git LFS" in refusal(llama)


def test_the_files_are_those_that_transformers_reads(llama):
    """One whole file before an index, safetensors before pickles."""
    other = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (llama / "pytorch_model.bin.index.json").write_text(json.dumps(other))
    (llama / "pytorch_model.bin").write_bytes(b"cut")
    assert found(llama) is not None


def test_quantized_models_are_refused(llama):
    weights: dict[str, Tensor] = load_file(llama / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    assert f"is quantized: {name} as float8_e4m3fn" in refusal(llama)
    config = json.loads((llama / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (llama / "config.json").write_text(json.dumps(config | quantized))
    assert "is quantized (quantization_config in its config.json)" in refusal(llama)


def test_code_of_its_own_is_not_asked_for(llama):
    config = json.loads((llama / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (llama / "config.json").write_text(json.dumps(config | own))
    (llama / "mine.py").write_text("raise SystemExit\n")
    assert "code of its own" in refusal(llama)


def test_a_model_on_the_hub_is_checked_by_its_headers(tmp_path, monkeypatch):
    """Without its weights on this machine; and by its files once they are here."""
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
        found("someone/shards")  # only its config is here
