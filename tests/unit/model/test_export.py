import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tables import builtin_table, chosen_ids
from tiny_models import tiny
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rm_ray.batches.collate import unlabelled
from rm_ray.batches.packing import pack_groups
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model, build_without_weights
from rm_ray.model.export import check_exportable, export_model, export_skeleton, export_weights
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.slices import Slice, buffer_slices, stream_weights, write_slices

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
    pairs = table.gather(np.arange(7))
    ours = model.eval()(pack_groups(pairs, unlabelled(pairs), kernel="grouped"))[::2]
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
        for name in shapes:
            values = model.classifier.get_parameter(name).detach().flatten()
            half = len(values) // 2
            yield name, half, values[half:]
            yield name, 0, values[:half]

    export_weights(read, skeleton, folder, dtype=torch.float32)
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


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_clients_read_an_export_of_several_files(tmp_path, family):
    """Also of a model whose experts transformers joins and splits again."""
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1} if family == "mixtral" else {}
    config = tiny(tmp_path, model_type=family, num_key_value_heads=1, **experts)
    tokenizer = load_tokenizer("builtin")
    model = build_reward_model(config, tokenizer, seed=0, layout="padded")  # type: ignore[arg-type]
    folder = tmp_path / "export"
    export_model(
        model,
        model.state_dict(),
        tokenizer,
        folder,
        dtype=torch.float32,
        max_shard_size=100_000,
    )
    names = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2 and not (folder / "model.safetensors").exists()
    stored = {name: weight for file in files for name, weight in load_file(file).items()}
    assert stored.keys() == names
    for file in files:
        sizes = [weight.nbytes for weight in load_file(file).values()]
        assert sum(sizes) <= 100_000 or len(sizes) == 1
    client = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = model.classifier.state_dict()
    assert client.state_dict().keys() == expected.keys()
    assert all(torch.equal(w, expected[n]) for n, w in client.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_that_belong_to_a_models_files_are_exported_as_they_are(tmp_path, dtype):
    """The bias of DeepSeek-V3's router, from a model and from a checkpoint."""
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    config = tiny(
        tmp_path, model_type="deepseek_v3", num_key_value_heads=1, first_k_dense_replace=1,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=8,
        moe_intermediate_size=16, n_shared_experts=1, kv_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16,
    )  # fmt: skip
    tokenizer = load_tokenizer("builtin")
    model = build_reward_model(config, tokenizer, seed=0, layout="padded")  # type: ignore[arg-type]
    bias = model.classifier.get_buffer(name)
    bias.copy_(torch.linspace(-3, 3, len(bias)) + 0.001)
    export_model(model, model.state_dict(), tokenizer, tmp_path / "export", dtype=dtype)
    write_slices(
        [
            Slice(parameter=n, start=0, tensors={"weight": p.detach().view(-1)}, is_written=True)
            for n, p in model.named_parameters()
        ]
        + buffer_slices(model, is_written=True),
        tmp_path / "slices.safetensors",
    )
    export_skeleton(model, tokenizer, tmp_path / "skeleton", dtype=dtype)

    def read(shapes):
        full = {f"classifier.{n}": shape for n, shape in shapes.items()}
        for n, first, values in stream_weights(full, [tmp_path / "slices.safetensors"]):
            yield n.removeprefix("classifier."), first, values

    export_weights(read, tmp_path / "skeleton", tmp_path / "again", dtype=dtype)
    for folder in ("export", "again"):
        written = load_file(tmp_path / folder / "model.safetensors")
        assert torch.equal(written[name], bias) and written[name].dtype == torch.float32
        assert written["score.weight"].dtype == dtype
        client = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert torch.equal(client.get_buffer(name), bias)
    with pytest.raises(AssertionError, match="e_score_correction_bias"):
        parts = [(n, p) for n, p in model.state_dict().items() if "e_score" not in n]
        export_model(model, parts, tokenizer, tmp_path / "export", dtype=dtype)
