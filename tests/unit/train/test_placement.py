"""Placing on one process; tests/parity/test_lean.py covers ranks, stages and kinds of files."""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_training import reset_accelerator
from reward_heads import head_weight, save
from safetensors.torch import load_file, save_file

from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.lora import add_adapters
from rm_ray.model.tuning.quantization import dequantize, quantize_backbone
from rm_ray.model.tuning.trainable import choose_trained
from rm_ray.train import placement
from rm_ray.train.engine import Engine
from rm_ray.train.placement import (
    parts_of,
    place_empty,
    place_whole,
    refuse_other_files,
    stream_whole,
)

CPU = torch.device("cpu")

DRAWN = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 1, "vocab_size": 1000}  # fmt: skip


def build(base: Path, *, lean: bool, dtype: torch.dtype = torch.float32) -> RewardModel:
    config = ResolvedModel(name_or_path=str(base), tokenizer="builtin")
    return build_reward_model(config, load_tokenizer("builtin"), seed=7, dtype=dtype, lean=lean)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", {"score.weight": head_weight()}, "sharded")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1_000, 2**26])
def test_values_are_those_of_a_model_read_whole(base: Path, monkeypatch, dtype, at_once):
    monkeypatch.setattr(placement, "MOST_AT_ONCE", at_once)
    whole, lean = build(base, lean=False), build(base, lean=True)
    assert lean.kept_head == whole.kept_head == "score.weight"
    assert {p.is_meta for n, p in lean.named_parameters() if "score" not in n} == {True}
    lean.classifier.base_model.norm.weight.requires_grad = False
    place_whole(lean, CPU, dtype=dtype, rank=0)
    assert lean.sources is None
    found = dict(lean.named_parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(found[name], parameter.to(dtype)), name
        assert found[name].requires_grad == ("model.norm" not in name)


def test_without_a_dtype_every_parameter_keeps_its_own(base: Path):
    """Frozen weights are in that of products, trained ones in float32."""
    config, half = ModelConfig(trainable="last:1"), torch.bfloat16
    whole, lean = build(base, lean=False), build(base, lean=True)
    for model in (whole, lean):
        choose_trained(model, config, LoraConfig(), seed=0, dtype=half)
    place_whole(lean, CPU, dtype=None, rank=0)
    found = dict(lean.named_parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(found[name], parameter), name
        assert found[name].dtype == (torch.float32 if parameter.requires_grad else half), name
        assert found[name].requires_grad == parameter.requires_grad, name


def test_adapters_are_drawn_on_every_rank_and_wait_for_the_weights_beneath(base: Path):
    whole, lean = build(base, lean=False), build(base, lean=True)
    for model in (whole, lean):
        add_adapters(model, LoraConfig(rank=2), seed=5)
    assert {p.is_meta for n, p in lean.named_parameters() if "lora_" not in n} == {True, False}
    assert not any(p.is_meta for n, p in lean.named_parameters() if "lora_" in n or "score" in n)
    place_whole(lean, CPU, dtype=None, rank=0)
    expected = whole.state_dict()
    assert lean.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in lean.state_dict().items())


def test_a_lean_model_streams_its_weights_from_the_files(base: Path):
    whole, lean = (build(base, lean=is_lean, dtype=torch.bfloat16) for is_lean in (False, True))
    streamed = dict(stream_whole(lean, None, rank=0))
    expected = whole.state_dict()
    assert streamed.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in streamed.items())
    assert any(parameter.is_meta for parameter in lean.parameters())  # and keeps none of them


def test_other_ranks_read_nothing(base: Path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(placement, "read_into", fail)
    lean = build(base, lean=True)
    place_whole(lean, CPU, dtype=torch.float32, rank=1)
    assert not any(parameter.is_meta for parameter in lean.parameters())


def test_a_parameter_that_two_modules_share_stays_one(base: Path):
    lean = build(base, lean=True)
    layer = lean.classifier.base_model.layers[0].mlp
    layer.up_proj.weight = layer.gate_proj.weight
    place_whole(lean, CPU, dtype=torch.float32, rank=0)
    assert layer.up_proj.weight is layer.gate_proj.weight


def test_random_weights_are_freed_one_after_another(tmp_path: Path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_type": "llama", **DRAWN}))
    model = build(path, lean=True)
    old = [weakref.ref(parameter) for parameter in model.parameters()]
    alive: list[int] = []

    def place(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        alive.append(sum(each() is not None for each in old))
        return torch.nn.Parameter(parameter.detach().bfloat16())

    placement._replace_parameters(model, place)
    assert alive == sorted(alive, reverse=True)
    assert alive[0] == len(old) and alive[-1] <= 2


def test_the_engine_places_a_lean_model_and_streams_it_out(base: Path):
    reset_accelerator()
    engine = Engine(
        build(base, lean=True),
        OptimizerConfig(learning_rate=1e-3),
        ResolvedCluster(),
        dtype=torch.float32,
        use_gpu=False,
    )
    expected = build(base, lean=False).state_dict()
    streamed = dict(engine.stream_weights())
    assert streamed.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in streamed.items())
    assert not list(stream_whole(engine.module, None, rank=1))


def test_random_weights_are_rank_0_s_and_drawn_as_ever(tmp_path: Path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_type": "llama", **DRAWN}))
    whole, lean = build(path, lean=False), build(path, lean=True)
    place_whole(lean, CPU, dtype=torch.float32, rank=0)
    for one, other in zip(whole.parameters(), lean.parameters(), strict=True):
        assert torch.equal(one, other)


@given(st.integers(1, 200), st.integers(2, 4), st.integers(1, 4))
def test_the_parts_of_all_ranks_cover_a_parameter_once(numel: int, nodes: int, each: int):
    world_size = nodes * each
    parts = [parts_of(numel, rank, world_size, each) for rank in range(world_size)]
    assert {len(part) for part in parts} == {2 if each > 1 else 1}
    covered = [i for part in parts for i in range(*part[0])]
    assert covered == list(range(numel))
    if each > 1:
        of_a_node = [i for part in parts[-each:] for i in range(*part[1])]
        assert of_a_node == list(range(numel))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_model_has_memory_for_every_parameter_and_no_sources(base: Path, dtype):
    whole, empty = build(base, lean=False, dtype=dtype), build(base, lean=True, dtype=dtype)
    place_empty(empty, CPU, dtype=dtype)
    assert empty.sources is None
    found = {name: (p.shape, p.dtype, p.is_meta) for name, p in empty.named_parameters()}
    assert found == {n: (p.shape, dtype, False) for n, p in whole.named_parameters()}


def test_an_empty_model_keeps_its_weights_in_4_bits(base: Path):
    model = build(base, lean=False)
    quantize_backbone(model, dtype=torch.bfloat16)
    quantized = {n: p for n, p in model.named_parameters() if p.dtype == torch.uint8}
    expected = {name: dequantize(parameter) for name, parameter in quantized.items()}
    place_empty(model, CPU, dtype=torch.bfloat16)
    found = dict(model.named_parameters())
    assert expected
    assert all(torch.equal(dequantize(found[name]), values) for name, values in expected.items())
    assert {p.dtype for n, p in found.items() if n not in expected} == {torch.bfloat16}


def fingerprints(monkeypatch: pytest.MonkeyPatch, *models: RewardModel) -> None:
    """Compare models as if each was on a machine of its own."""
    told: list[tuple[str, str]] = []

    def tell(value: tuple[str, str]) -> list[tuple[str, str]]:
        told.append((f"node{len(told)}", value[1]))
        return told

    monkeypatch.setattr(placement, "gather_objects", tell)
    for model in models:
        refuse_other_files(model)


def test_files_that_differ_between_machines_are_refused_with_the_hosts(base: Path, monkeypatch):
    same, other = base.with_name("same"), base.with_name("other")
    shutil.copytree(base, same)
    shutil.copytree(base, other)
    fingerprints(monkeypatch, *(build(path, lean=True) for path in (base, same)))
    file = sorted(other.glob("*.safetensors"))[-1]
    save_file({n: w + 1 for n, w in load_file(file).items()}, file, {"format": "pt"})
    assert file.stat().st_size == (base / file.name).stat().st_size
    with pytest.raises(
        InputError, match=r"weight files on node0, node1 differ from those on node2"
    ):
        fingerprints(monkeypatch, *(build(path, lean=True) for path in (base, same, other)))


def test_small_and_large_files_are_compared_from_beginning_to_end(tmp_path: Path):
    for size in (0, 10, placement.SAMPLE * (placement.NUM_SAMPLES + 5)):
        file = tmp_path / "file"
        content = bytearray(size)
        file.write_bytes(content)
        first = placement._sample(file)
        if size:
            content[-1] = 1
            file.write_bytes(content)
            assert placement._sample(file) != first
