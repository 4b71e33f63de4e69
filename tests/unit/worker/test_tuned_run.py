"""A run that trains a part of a model: checkpoints, resuming, exports, and a run on top of it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nf4
import peft
import pytest
import torch
from plain_training import (
    PlainRank,
    StopsAt,
    exported_weights,
    reset_accelerator,
    small_config,
    unmeasured,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rm_ray.checkpoint.find import find_checkpoint
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ResolvedModel
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.publish.base_hash import hash_base
from rm_ray.publish.export_gate import run_export_gate
from rm_ray.publish.partial_export import export_onto_base
from rm_ray.worker.build import build_compute

LORA = LoraConfig(rank=4, alpha=8.0, export="both")
SETTINGS = {
    "adapters": (LORA, ResolvedModel()),
    "bfloat16": (LORA, ResolvedModel(dtype="bfloat16")),
    "embeddings": (replace(LORA, train_embeddings=True, targets=("v_proj",)), ResolvedModel()),
    "nf4": (LORA, ResolvedModel(quantization="nf4")),
    "nf4 in bfloat16": (LORA, ResolvedModel(quantization="nf4", dtype="bfloat16")),
    "last": (LoraConfig(), ResolvedModel(trainable="last:1")),
    "head": (LoraConfig(), ResolvedModel(trainable="head", dtype="bfloat16")),
}


@dataclass
class Tuned:
    """A finished run."""

    name: str
    rank: PlainRank
    result: dict[str, Any]
    rewards: list[dict[str, Any]]


def make_base(folder: Path) -> Path:
    """Save a language model whose embedding lacks the last token of the tokenizer."""
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(load_tokenizer("builtin")) - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def make_rank(folder: Path, name: str, base: Path, **job: Any) -> PlainRank:
    lora, model = SETTINGS[name]
    model = replace(model, name_or_path=str(base), tokenizer="builtin")
    config = small_config(folder, model=model, lora=lora)
    return PlainRank.make(folder, config, **{"base_hash": hash_base(model), **job})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=SETTINGS)
def tuned(
    machine: Path,
    base: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Tuned]:
    rank = make_rank(tmp_path_factory.mktemp("run"), request.param, base)
    result = rank.train()
    rewards = rank.job.run_folder.read_json("probes.json")["scored"]
    yield Tuned(request.param, rank, result, rewards)
    reset_accelerator()


def tolerance(tuned: Tuned) -> float:
    return 1e-5 if tuned.rank.job.config.model.dtype == "float32" else 0.03


def rewards_of(model: Any, scored: list[dict[str, Any]]) -> list[float]:
    model.eval()
    with torch.no_grad():
        return [model(torch.tensor([one["ids"]])).logits.item() for one in scored]


def test_a_checkpoint_holds_only_what_is_trained_and_the_hash_of_the_base(tuned: Tuned, base: Path):
    folder = tuned.rank.job.run_folder
    found = find_checkpoint(folder, "plan", rank=0, world_size=1)
    assert found is not None
    (slices,) = (name for name, entry in found.manifest.files.items() if "extents" in entry)
    names = {name.removeprefix("classifier.") for name in found.manifest.files[slices]["extents"]}
    parts = {
        "adapters": (".lora_", "score."),
        "bfloat16": (".lora_", "score."),
        "nf4": (".lora_", "score."),
        "nf4 in bfloat16": (".lora_", "score."),
        "embeddings": (".lora_", "score.", "embed_tokens"),
        "last": ("layers.1.", "model.norm.", "score."),
        "head": ("score.",),
    }[tuned.name]
    assert names and all(any(part in name for part in parts) for name in names)
    assert all(any(part in name for name in names) for part in parts)
    state = json.loads(folder.read_text(f"{found.name}/state.json"))
    assert state["base_hash"] == hash_base(tuned.rank.job.config.model) != ""


def test_the_export_gives_the_rewards_of_training(tuned: Tuned):
    model = AutoModelForSequenceClassification.from_pretrained(
        tuned.result["export"], dtype=torch.float32
    )
    found = rewards_of(model, tuned.rewards)
    expected = [one["reward"] for one in tuned.rewards]
    assert found == pytest.approx(expected, abs=tolerance(tuned))
    assert not any("lora" in name or "base_layer" in name for name in exported_weights(tuned.rank))


def test_the_export_passes_the_gate(tuned: Tuned, clients_here: None):
    if tuned.name not in ("adapters", "bfloat16", "nf4", "nf4 in bfloat16"):
        pytest.skip("one gate for each precision")
    rewards = tuned.rank.job.run_folder.read_json("probes.json")
    dtype = tuned.rank.job.config.model.dtype
    assert run_export_gate(Path(tuned.result["export"]), rewards, dtype).problem == ""


def test_peft_loads_the_adapter_with_the_head_in_it(tuned: Tuned):
    folder = Path(tuned.rank.job.run_folder.join("adapter"))
    if not tuned.rank.job.config.lora.is_on:
        assert not folder.exists()
        return
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    settings = tuned.rank.job.config.model
    if settings.quantization == "nf4":  # the rewards are those on such a base
        for name, module in model.named_modules():
            if name.endswith(".base_layer"):
                nf4.round_linear_layers(module.to(getattr(torch, settings.dtype)))
                module.float()
    found = rewards_of(model, tuned.rewards)
    expected = [one["reward"] for one in tuned.rewards]
    assert found == pytest.approx(expected, abs=tolerance(tuned))
    stored = load_file(folder / "adapter_model.safetensors")
    merged = exported_weights(tuned.rank)
    assert torch.equal(stored["base_model.model.score.weight"], merged["score.weight"])
    described = json.loads((folder / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["task_type"]) == (4, 8.0, "SEQ_CLS")


def test_a_resumed_run_ends_bit_for_bit_like_one_without_a_stop(tuned, base, tmp_path):
    stopped = StopsAt("training", 5).apply(make_rank(tmp_path, tuned.name, base))
    assert stopped.train()["stopped"]["step"] == 5
    resumed = make_rank(tmp_path, tuned.name, base, attempt=2)
    resumed.train()
    expected, found = exported_weights(tuned.rank), exported_weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    scored = resumed.job.run_folder.read_json("probes.json")["scored"]
    assert scored == tuned.rewards
    assert unmeasured(resumed.channel.records)[-1] == unmeasured(tuned.rank.channel.records)[-1]


def test_a_checkpoint_is_merged_with_its_base_like_the_export(tuned: Tuned, tmp_path: Path):
    job = tuned.rank.job
    found = find_checkpoint(job.run_folder, "plan", rank=0, world_size=1)
    assert found is not None and found.manifest.step == job.steps.total
    files = sorted(Path(job.run_folder.join(found.name)).glob("slices-*.safetensors"))
    hashed = hash_base(job.config.model)
    export_onto_base(job.config, job.tokenizer, files, tmp_path, base_hash=hashed)
    expected, written = exported_weights(tuned.rank), load_file(tmp_path / "model.safetensors")
    assert expected.keys() == written.keys()
    assert all(torch.equal(written[name], weight) for name, weight in expected.items())
    export = Path(tuned.result["export"])
    for name in ("config.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (export / name).read_text()
    with pytest.raises(InputError, match=r"has changed since the run began.*Restore the model"):
        export_onto_base(job.config, job.tokenizer, files, tmp_path, base_hash="0" * 64)


def test_a_checkpoint_of_another_base_is_refused(tuned: Tuned, base: Path, tmp_path: Path):
    if tuned.name != "head":
        pytest.skip("the check is the same")
    StopsAt("training", 3).apply(make_rank(tmp_path, "head", base)).train()
    other = make_rank(tmp_path, "head", base, attempt=2)
    other = replace(other, job=replace(other.job, base_hash="1" * 64))
    with pytest.raises(InputError, match="the hash 111111111111, and had"):
        other.train()


def test_workers_hash_what_they_loaded_if_the_driver_could_not(tuned: Tuned, base: Path, tmp_path):
    if tuned.name != "head":
        pytest.skip("the check is the same")
    own = tmp_path / "own"
    shutil.copytree(base, own)
    StopsAt("training", 3).apply(make_rank(tmp_path, "head", own, base_hash="")).train()
    weights = load_file(own / "model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, own / "model.safetensors", {"format": "pt"})
    for hashed in ("", hash_base(ResolvedModel(name_or_path=str(own)))):
        other = make_rank(tmp_path, "head", own, attempt=2, base_hash=hashed)
        with pytest.raises(InputError, match="own' has changed since the run began"):
            other.train()


def test_a_run_may_start_from_the_adapter(tuned: Tuned, tmp_path: Path):
    """With the rewards that the first run ended with; the adapter's head is kept."""
    if not tuned.rank.job.config.lora.is_on:
        pytest.skip("there is no adapter")
    if tuned.rank.job.config.model.quantization == "nf4":
        pytest.skip("it is merged into the base in full precision, which has other rewards")
    adapter = tuned.rank.job.run_folder.join("adapter")
    dtype = tuned.rank.job.config.model.dtype
    model = ResolvedModel(name_or_path=adapter, tokenizer="builtin", dtype=dtype, head="keep")
    second = PlainRank.make(tmp_path, small_config(tmp_path, model=model))
    reset_accelerator()
    compute = build_compute(second.job)
    assert compute.engine.module.kept_head == "score.weight"
    scored = second.job.reference_groups.score(
        compute.engine, compute.collator, tokens_per_pass=10_000
    )["scored"]
    expected = [one["reward"] for one in tuned.rewards]
    assert [one["reward"] for one in scored] == pytest.approx(expected, abs=tolerance(tuned))
    assert all(p.requires_grad for p in compute.engine.module.parameters())
    assert not any("lora" in name for name, _ in compute.engine.module.named_parameters())
    merged = exported_weights(tuned.rank)
    for name, weight in compute.engine.weights().items():
        expected_weight = merged[name.removeprefix("classifier.")].float()
        is_new = "embed" in name and tuned.name != "embeddings"
        if not is_new:  # the pad token's embedding is drawn, and never read
            torch.testing.assert_close(
                weight, expected_weight, rtol=0, atol=1e-2 * (dtype != "float32") + 1e-6
            )
