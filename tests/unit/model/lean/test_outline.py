import copy
from pathlib import Path

import pytest
import torch
from families import FAMILIES, describe
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rm_ray.model.lean.outline import (
    compare,
    names_in_files,
    outline_alike,
    outline_from_files,
)
from rm_ray.model.lean.stored_weight import find_stored_weights

EXPERTS = {
    "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 50, "num_local_experts": 2,
}  # fmt: skip


def architecture_of(folder: Path, fields: dict[str, object]) -> object:
    """Save a language model, and return its config with one label."""
    config = AutoConfig.for_model(**fields)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    architecture = AutoConfig.from_pretrained(folder)
    architecture.num_labels = 1
    return architecture


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_has_everything_but_values_as_transformers_loads_it(tmp_path: Path, family):
    architecture = architecture_of(tmp_path, describe(family))
    loaded = []
    for lean in (False, True):
        torch.manual_seed(5)
        if lean:
            stored = find_stored_weights([tmp_path / "model.safetensors"])
            outlined = outline_from_files(
                architecture, stored, dtype=torch.float32, attention="sdpa"
            )
            assert outlined is not None
            model, sources, report = outlined
        else:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                tmp_path, config=architecture, dtype=torch.float32, attn_implementation="sdpa",
                output_loading_info=True,
            )  # fmt: skip
        loaded.append((model, report["unexpected_keys"], torch.rand(4)))
    (whole, unused, drawn), (lean, also_unused, also_drawn) = loaded
    assert unused == also_unused
    assert torch.equal(drawn, also_drawn)
    assert torch.equal(whole.score.weight, lean.score.weight)
    parameters = dict(lean.named_parameters())
    for name, parameter in whole.named_parameters():
        if name != "score.weight":
            assert parameters[name].is_meta
            values = sources[parameters[name]].read().view(parameter.shape)
            assert torch.equal(values.float(), parameter), name
            assert parameters[name].dtype == parameter.dtype
    alike = outline_alike(architecture, dtype=torch.float32, attention="sdpa")
    assert alike is not None
    assert {p.device.type for p in alike.parameters()} == {"meta"}
    for other in (lean, alike):
        assert dict(other.named_buffers()).keys() == dict(whole.named_buffers()).keys()
        for name, buffer in other.named_buffers():
            assert torch.equal(buffer, whole.get_buffer(name)), name
        assert other.config._attn_implementation == "sdpa"


def test_weights_that_transformers_joins_have_no_outline(tmp_path: Path):
    architecture = architecture_of(tmp_path, EXPERTS)
    before = copy.deepcopy(architecture).to_dict()
    stored = find_stored_weights([tmp_path / "model.safetensors"])
    options = {"dtype": torch.float32, "attention": "sdpa"}
    assert outline_from_files(architecture, stored, **options) is None
    alike = outline_alike(architecture, **options)
    assert alike is not None
    assert names_in_files(alike, {n: p.shape for n, p in alike.named_parameters()}) is None
    assert architecture.to_dict() == before


def test_a_weight_of_another_shape_has_no_outline(tmp_path: Path):
    architecture = architecture_of(tmp_path, describe("llama"))
    architecture.intermediate_size += 1
    stored = find_stored_weights([tmp_path / "model.safetensors"])
    assert outline_from_files(architecture, stored, dtype=torch.float32, attention="sdpa") is None
    _, report = compare(
        architecture, {n: torch.empty(s.shape, device="meta") for n, s in stored.items()}
    )
    assert "model.layers.0.mlp.up_proj.weight" in {name for name, *_ in report["mismatched_keys"]}
