"""The last layer, computed only at the tokens that rewards are read from."""

from typing import Any

from families import (
    build_in_float64,
    lay_out,
    some_groups,
)
from torch import nn

from rm_ray.model.last_layer import LIKE_LLAMA


def test_the_last_layer_is_computed_only_at_the_ends(tmp_path):
    sizes = [2, 1, 5, 2]
    packed = lay_out(some_groups(sizes, seed=7), "packed")
    seen: dict[str, int] = {}
    model = build_in_float64(tmp_path, "llama", "packed")
    last = model.classifier.base_model.layers[-1]
    assert type(last).__name__ in LIKE_LLAMA

    def count(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output.shape[1]})

    for name, module in last.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count(name))
    model(packed)
    everywhere, ends = packed.input_ids.shape[1], sum(sizes)
    assert seen == {
        "self_attn.q_proj": ends, "self_attn.k_proj": everywhere, "self_attn.v_proj": everywhere,
        "self_attn.o_proj": ends, "mlp.gate_proj": ends, "mlp.up_proj": ends,
        "mlp.down_proj": ends,
    }  # fmt: skip
