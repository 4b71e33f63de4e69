"""Merged weights give the rewards of adapters."""

from collections.abc import Iterator

import pytest
import torch
from families import build_in_float64, lay_out, some_groups
from test_lora import SIZES, adapted

from rm_ray.model.tuning.lora import Adapter, find_adapters
from rm_ray.model.tuning.merge import merge_adapters


@pytest.mark.parametrize("name", ["llama-grouped", "qwen2", "gpt_neox"])
def test_rewards_of_merged_weights_are_those_of_the_adapters(tmp_path, name):
    """Biases of the layers are kept."""
    packed = lay_out(some_groups(SIZES), "packed")
    model, plain = adapted(tmp_path, name, "packed"), build_in_float64(tmp_path, name, "packed")
    before = plain(packed)
    adapters = find_adapters(model.classifier)
    merged = merge_adapters(model.classifier.state_dict().items(), adapters, dtype=torch.float32)
    plain.classifier.load_state_dict(dict(merged))
    torch.testing.assert_close(plain(packed), model(packed), rtol=0, atol=1e-6)
    assert (plain(packed) - before).abs().max() > 1e-3


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_product_is_added_in_float32_and_rounded_once(is_transposed):
    base = torch.full((2, 3), 1.0)
    weights = {
        "a.base_layer.weight": base.T if is_transposed else base,
        "a.base_layer.bias": torch.ones(2),
        "a.lora_A.default.weight": torch.tensor([[1.0, 2.0, 0.001]]),
        "a.lora_B.default.weight": torch.tensor([[0.5], [0.25]]),
        "norm.weight": torch.ones(2),
    }
    adapter = Adapter(layer="a", scaling=2.0, is_transposed=is_transposed)
    merged = dict(merge_adapters(weights.items(), [adapter], dtype=torch.bfloat16))
    expected = torch.tensor([[2.0, 3.0, 1.0], [1.5, 2.0, 1.0]])
    assert merged.keys() == {"a.weight", "a.bias", "norm.weight"}
    assert merged["a.weight"].dtype == torch.bfloat16
    assert merged["a.bias"] is weights["a.base_layer.bias"]  # whoever writes it casts it
    found = merged["a.weight"].float()
    assert torch.equal(found.T if is_transposed else found, expected)
    assert len(weights) == 5


def test_layers_are_merged_one_after_another():
    """As soon as its last matrix is read, and before the next layer's are."""
    weights = {
        f"{layer}.{name}": torch.full((2, 2), value)
        for layer, value in (("a", 1.0), ("b", 2.0))
        for name in ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    }
    adapters = [Adapter(layer=layer, scaling=1.0, is_transposed=False) for layer in "ab"]
    seen: list[str] = []

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in weights.items():
            seen.append(name)
            yield name, weight

    merging = merge_adapters(read(), adapters, dtype=torch.float32)
    name, merged = next(merging)
    assert (name, merged.tolist()) == ("a.weight", [[3.0, 3.0], [3.0, 3.0]])
    assert [each.partition(".")[0] for each in seen] == ["a"] * 3
    assert next(merging)[1].tolist() == [[10.0, 10.0], [10.0, 10.0]]
    assert next(merging, None) is None
