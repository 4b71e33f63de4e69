"""4-bit linear layers beside NumPy, and beside the same model with the values they stand for."""

from pathlib import Path
from typing import Any

import families
import nf4
import pytest
import torch
from base_models import make
from families import FAMILIES, lay_out, some_groups
from torch import Tensor, nn

from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.model.build import build_reward_model
from rm_ray.model.flops import ModelFlops
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.quantization import Nf4Linear, dequantize, quantize_backbone
from rm_ray.model.tuning.trainable import choose_trained

LORA = LoraConfig(rank=2, alpha=4.0)
NF4 = ModelConfig(quantization="nf4")
SIZES = [2, 1, 3, 2, 5]


def draw(*shape: int, seed: int = 0, scale: float = 0.05) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale


@pytest.mark.parametrize("shape", [(64, 64), (128, 384), (48, 64), (3, 192), (1, 64), (900, 320)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_become_the_values_that_the_paper_says(shape, dtype):
    values = draw(*shape).to(dtype)
    layer = Nf4Linear(values, None)
    found = dequantize(layer.weight)
    assert (found.shape, found.dtype) == (values.shape, dtype)
    expected = nf4.round_trip(values).to(dtype)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-8)
    # bitsandbytes takes the farther level for scales within 3e-5 of the middle of two.
    close = {torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    is_off = (found - expected).abs() > close * expected.abs() + 1e-8
    assert is_off.float().mean() < 0.005
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() == -(-values.numel() // 2)


def test_every_level_of_nf4_is_reached_exactly():
    values = torch.from_numpy(nf4.LEVELS).float().repeat(4)[None] * 0.3
    torch.testing.assert_close(dequantize(Nf4Linear(values, None).weight), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_multiplies_by_its_values_forward_and_backward(dtype):
    layer = Nf4Linear(draw(24, 64).to(dtype), nn.Parameter(draw(24, seed=1)))
    inputs = draw(3, 7, 64, seed=2, scale=1.0).requires_grad_()
    result = layer(inputs)
    assert result.dtype == dtype
    result.float().square().sum().backward()
    again = inputs.detach().clone().requires_grad_()
    weight = dequantize(layer.weight).float()
    expected = nn.functional.linear(again, weight, layer.bias)
    expected.square().sum().backward()
    close = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(result.float(), expected, rtol=close, atol=close)
    torch.testing.assert_close(inputs.grad, again.grad, rtol=close, atol=close)


def test_an_evaluation_changes_nothing_in_later_gradients():
    """On CPUs with bfloat16 products, bitsandbytes' own layer repacks its weight for good."""
    layer = Nf4Linear(draw(64, 64).bfloat16(), None)
    gradients = []
    for evaluates in (False, True):
        if evaluates:
            layer.eval()
            with torch.no_grad():
                layer(draw(2, 64, seed=3))
            layer.train()
        inputs = draw(2, 64, seed=2).requires_grad_()
        layer(inputs).float().sum().backward()
        gradients.append(inputs.grad)
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.fixture(autouse=True)
def wider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the families' models rows of whole blocks; where heads are few, ``o_proj`` has none."""
    narrow = families.describe
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    monkeypatch.setattr(families, "describe", lambda name: narrow(name) | sizes)


def pair(folder: Path, family: str, layout: Layout, **options: Any) -> list[RewardModel]:
    """Return a quantized model with adapters, and the same on the values that it stands for."""
    models = []
    for config in (NF4, ModelConfig()):
        model = families.build(folder, family, layout, **options)
        if config.quantization == "none":
            nf4.round_linear_layers(model.classifier.base_model)
        choose_trained(model, config, LORA, seed=1, dtype=torch.float32)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        models.append(model)
    return models


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mistral", "qwen2", "olmo2"}))
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_model_gives_the_rewards_and_gradients_of_its_values(tmp_path, family, recomputes):
    """Packed, with a trimmed last layer where there is one, and padded."""
    groups = some_groups(SIZES)
    for layout in ("packed", "padded"):
        found = []
        for model in pair(tmp_path, family, layout, gradient_checkpointing=recomputes):
            rewards = model(lay_out(groups, layout))
            rewards.square().sum().backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            found.append((rewards, gradients))
        (rewards, gradients), (expected, expected_gradients) = found
        torch.testing.assert_close(rewards, expected, rtol=1e-4, atol=1e-5)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            largest = float(expected_gradients[name].abs().max())
            close = 1e-4 * largest + 1e-6
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=close)


def test_only_the_backbones_linear_layers_are_quantized(tmp_path):
    model = families.build(tmp_path, "gpt_neox", "packed")
    before = {n: p.clone() for n, p in model.named_parameters()}
    flops = [layer.token for layer in ModelFlops.of(model.classifier).layers]
    quantize_backbone(model, dtype=torch.float32)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    quantized = {n for n, p in after.items() if p.dtype == torch.uint8}
    kinds = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    assert {n.split(".")[-2] for n in quantized} == set(kinds) and len(quantized) == 8
    assert all(torch.equal(after[n], before[n]) for n in before.keys() - quantized)
    assert [layer.token for layer in ModelFlops.of(model.classifier).layers] == flops
    assert model.state_dict().keys() == before.keys()


def test_a_model_in_files_is_read_and_quantized_layer_by_layer(tmp_path):
    """With the same bits as one that is loaded whole, and the same drawn embedding."""
    make(tmp_path, "llama")
    tokenizer = load_tokenizer("builtin")
    config = ResolvedModel(name_or_path=str(tmp_path), tokenizer="builtin", quantization="nf4")
    found = []
    for lean in (True, False):
        model = build_reward_model(
            config, tokenizer, seed=0, dtype=torch.bfloat16, lean=lean, shared=not lean
        )
        assert any(p.is_meta for p in model.parameters()) == lean
        choose_trained(model, config, LORA, seed=0, dtype=torch.bfloat16)
        assert model.sources is None
        found.append(model)
    lean, whole = (dict(m.named_parameters()) for m in found)
    assert lean.keys() == whole.keys()
    for name, parameter in lean.items():
        assert torch.equal(parameter, whole[name]), name
        assert parameter.dtype == whole[name].dtype
        if parameter.dtype == torch.uint8:
            assert torch.equal(dequantize(parameter), dequantize(whole[name]))
