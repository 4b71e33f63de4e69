import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import builtin_table, chosen_ids
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rm_ray.batches.packing import pack_pairs
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model, build_without_weights
from rm_ray.model.export import check_exportable, export_model, export_skeleton, export_weights
from rm_ray.model.reward_model import RewardModel

FAMILIES = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 64},
    "mistral": {"num_key_value_heads": 1},
    "gpt_neox": {},
}


def build(folder: Path, family: str) -> tuple[RewardModel, Path]:
    """Export a tiny model of a family with random weights."""
    path = folder / "model.json"
    path.write_text(json.dumps({"model_type": family, "hidden_size": 64, "intermediate_size": 64,
                                "num_hidden_layers": 2, "num_attention_heads": 1,
                                "vocab_size": 1024, **FAMILIES[family]}))  # fmt: skip
    tokenizer = load_tokenizer("builtin")
    model = build_reward_model(
        ModelConfig(name_or_path=str(path)), tokenizer, seed=0, layout="packed"
    )
    export_model(model, model.state_dict(), tokenizer, folder / "export", dtype=torch.float32)
    return model, folder


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_transformers_gives_the_rewards_of_training(tmp_path, family, batch_size):
    model, _ = build(tmp_path, family)
    table, tokenizer = builtin_table(tmp_path / "again", 7)
    pairs = pack_pairs(
        table.gather(np.arange(7)),
        margins=table.margin,
        weights=torch.ones(7).numpy(),
        kernel="grouped",
    )
    ours = model.eval()(pairs)[:7]
    client = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    rows = [{"input_ids": chosen_ids(table, p).tolist()} for p in range(7)]
    theirs = [
        client(**tokenizer.pad(rows[i : i + batch_size], return_tensors="pt")).logits[:, 0]
        for i in range(0, 7, batch_size)
    ]
    torch.testing.assert_close(torch.cat(theirs), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox"])
def test_clients_read_the_tokens_of_training(tmp_path, family):
    build(tmp_path, family)
    table, tokenizer = builtin_table(tmp_path / "again", 7)
    check_exportable(AutoConfig.from_pretrained(tmp_path / "export"), tokenizer)
    reader = AutoTokenizer.from_pretrained(tmp_path / "export")
    for pair, row in enumerate(generate_pairs("train", 7)):
        ids = reader.apply_chat_template(row["chosen"])["input_ids"]
        assert ids == chosen_ids(table, pair).tolist()


def test_a_tokenizer_that_clients_would_load_differently_is_refused(tmp_path):
    build(tmp_path, "qwen2")
    architecture = AutoConfig.from_pretrained(tmp_path / "export")
    with pytest.raises(InputError, match="reads this tokenizer as Qwen2Tokenizer"):
        check_exportable(architecture, load_tokenizer("builtin"))


def test_the_pipeline_returns_the_reward_itself(tmp_path):
    build(tmp_path, "llama")
    table, _ = builtin_table(tmp_path / "again", 1)
    score = pipeline("text-classification", model=str(tmp_path / "export"))
    text = score.tokenizer.decode(chosen_ids(table, 0))
    with torch.no_grad():
        client = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
        logit = client(torch.tensor(chosen_ids(table, 0)).long()[None]).logits.item()
    assert score(text)[0]["score"] == pytest.approx(logit, abs=1e-6)
    assert not 0 < logit < 1e-9


def test_the_folder_has_the_fields_that_older_readers_need(tmp_path):
    build(tmp_path, "llama")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == config["dtype"] == "float32"
    tokenizer = json.loads((tmp_path / "export" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert "assistant" in tokenizer["chat_template"]
    assert tokenizer["pad_token"] != tokenizer["eos_token"]
    reader = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert config["pad_token_id"] == reader.pad_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_and_weights_make_the_same_folder(tmp_path, family):
    model, _ = build(tmp_path, family)
    tokenizer, config = (
        load_tokenizer("builtin"),
        ModelConfig(name_or_path=str(tmp_path / "model.json")),
    )
    skeleton, folder = tmp_path / "skeleton", tmp_path / "again"
    empty = build_without_weights(config, tokenizer)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    export_skeleton(empty, tokenizer, skeleton, dtype=torch.float32)
    assert not list(skeleton.glob("*.safetensors"))
    asked = {}

    def read(shapes):
        asked.update(shapes)
        return {name: model.classifier.get_parameter(name).detach() for name in shapes}

    export_weights(read, skeleton, folder)
    assert asked == {name: p.shape for name, p in model.classifier.named_parameters()}
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "export").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "export" / name).read_bytes(), name


def test_scaled_rope_is_written_under_its_old_name_too(tmp_path):
    scaled = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    FAMILIES["llama-scaled"] = {"model_type": "llama", "num_key_value_heads": 1,
                                "rope_parameters": scaled}  # fmt: skip
    try:
        build(tmp_path, "llama-scaled")
    finally:
        del FAMILIES["llama-scaled"]
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["rope_scaling"]["factor"] == 8.0


def test_rope_settings_of_gpt_neox_are_written_under_their_old_names_too(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 50_000.0, "partial_rotary_factor": 0.5}
    FAMILIES["neox-half"] = {"model_type": "gpt_neox", "rope_parameters": rope}
    try:
        build(tmp_path, "neox-half")
    finally:
        del FAMILIES["neox-half"]
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["rotary_emb_base"] == config["rope_theta"] == 50_000.0
    assert config["rotary_pct"] == config["partial_rotary_factor"] == 0.5
    assert config["rope_scaling"] is None
    again = AutoConfig.from_pretrained(tmp_path / "export")
    assert again.rope_parameters == rope
