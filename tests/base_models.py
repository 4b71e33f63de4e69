"""Tiny base models in real folders, and why one is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from hub_server import TOKEN, serving
from safetensors.torch import load_file, save_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedModel,
)

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.base_check import BaseModel
from rm_ray.publish.base_model import find_base

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


def make(folder: Path, family: str, kind: str = "CausalLM", **options: object) -> PreTrainedModel:
    """Save a tiny model of a family."""
    config = AutoConfig.for_model(family, **SIZES, num_labels=3)
    torch.manual_seed(1)
    model: PreTrainedModel = KINDS[kind][type(config)](config)
    model.save_pretrained(folder, **options)
    return model


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


def scatter(folder: Path) -> None:
    """Move each shard into a folder of its own, where all have one name."""
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    for i, file in enumerate(sorted(folder.glob("*.safetensors"))):
        (folder / f"part{i}").mkdir()
        file.rename(folder / f"part{i}" / "w.safetensors")
        text = text.replace(file.name, f"part{i}/w.safetensors")
    index.write_text(text)


@contextmanager
def empty_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[huggingface_hub.HfApi]:
    """Serve an empty Hub, with an empty cache."""
    cache = str(folder / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # A thread of an earlier test, whose Hub is gone, would close the client of all threads.
    monkeypatch.setattr("huggingface_hub.utils._http.close_session", lambda: None)
    with serving(folder / "hub") as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield huggingface_hub.HfApi(endpoint=endpoint)
