"""A model's FLOPs equal what PyTorch counts in real passes over real pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, lay_out, some_pairs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_ray.batches import attention_index
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.pair_tokens import PairLengths, join_pairs
from rm_ray.model import attention
from rm_ray.model.flops import LayerFlops, ModelFlops, TrimmedFlops
from rm_ray.model.last_layer import is_trimmable
from rm_ray.model.reward_model import RewardModel

SOME_PAIRS = some_pairs(6, seed=4)


def count(model: RewardModel, layout: Layout) -> dict[str, dict[str, int]]:
    """Return the FLOPs of matrices and attention in a forward and a backward pass.

    PyTorch's math kernel uses ``bmm`` for attention; everything else uses other products.
    """
    flops, counter = {}, FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        for name in ("forward", "backward"):
            with counter:
                if name == "forward":
                    rewards = model(lay_out(SOME_PAIRS, layout))
                else:
                    rewards.sum().backward()
            by_operator = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
            flops[name] = {
                "matrices": sum(n for op, n in by_operator.items() if op != "aten.bmm"),
                "attention": by_operator["aten.bmm"],
            }
    return flops


@pytest.mark.parametrize("name", FAMILIES)
def test_matrices_are_counted_to_the_flop_in_packed_passes(tmp_path: Path, name: str):
    model = build(tmp_path, name, "packed")
    counted = count(model, "packed")
    flops = ModelFlops.of(model.classifier)

    assert counted["forward"]["matrices"] == flops.matrices(SOME_PAIRS.lengths).sum()
    assert counted["backward"]["matrices"] == 2 * counted["forward"]["matrices"]
    assert counted["backward"]["attention"] == 2 * counted["forward"]["attention"]


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_counts_exactly_the_products_that_masks_allow(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    seen, through = [0.0], torch.nn.functional.scaled_dot_product_attention

    def look(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        mask = options["attn_mask"]
        shape = (len(query), 1, query.shape[-2], key.shape[-2])
        mask = torch.ones(shape, dtype=torch.bool).tril() if mask is None else mask.expand(shape)
        seen[0] += float(mask.sum()) * 4 * query.shape[1] * query.shape[-1]
        return through(query, key, value, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", look)
    monkeypatch.setattr(attention_index, "SMALL_WORK", 0)  # pad no branch to another's length
    monkeypatch.setattr(attention_index, "MAX_WASTE", 0.0)
    model = build(tmp_path, name, "packed")
    flops = ModelFlops.of(model.classifier).attention
    for chosen, rejected, prefix in ((9, 6, 0), (23, 23, 0), (17, 12, 8), (30, 3, 2)):
        ids = list(range(3, 3 + chosen + rejected))
        pair = join_pairs([(ids[:chosen], ids[:prefix] + ids[chosen : chosen + rejected - prefix])])
        seen[0] = 0.0
        model(lay_out(pair, "packed"))

        assert seen[0] == flops(pair.lengths).sum()


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt_neox"])
def test_flops_do_not_depend_on_the_layout(tmp_path: Path, name: str):
    both = [ModelFlops.of(build(tmp_path, name, layout).classifier) for layout in _LAYOUTS]

    assert both[0] == both[1]
    assert (both[0].last is not None) == (name == "llama")


_LAYOUTS: tuple[Layout, ...] = ("packed", "padded")

_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "num_labels": 1, "moe_intermediate_size": 16,
    "num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OTHERS: dict[str, dict[str, Any]] = {
    "mixtral": {"sliding_window": 5},
    "qwen2_moe": {"shared_expert_intermediate_size": 24},
    "qwen3_moe": {},
    "gpt_oss": {"head_dim": 8, "sliding_window": 5},
    "gpt2": {},
    "deepseek_v3": {
        "n_routed_experts": 8, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", _OTHERS)
def test_other_families_count_their_matrices_and_the_experts_that_a_token_uses(name: str):
    config = AutoConfig.for_model(name, **_SIZES | _OTHERS[name])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    tokens = torch.randint(3, 100, (1, 20))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.base_model(input_ids=tokens, use_cache=False)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    flops = ModelFlops.of(model)
    assert flops.last is None

    products = sum(layer.product for layer in flops.layers)
    assert counted.pop("aten.bmm") == 20**2 * products
    assert sum(counted.values()) == 20 * sum(layer.token for layer in flops.layers)


def test_each_layer_has_its_own_window(tmp_path: Path):
    windows = {
        name: [
            layer.window
            for layer in ModelFlops.of(build(tmp_path, name, "packed").classifier).layers
        ]
        for name in ("mistral-window", "qwen2-window", "olmo3", "qwen3")
    }

    assert windows == {
        "mistral-window": [5, 5], "qwen2-window": [None, 4], "olmo3": [4, None], "qwen3": [None]
    }  # fmt: skip


def test_an_8b_llama_needs_six_flops_per_parameter_and_token_plus_attention():
    config = AutoConfig.for_model(
        "llama", hidden_size=4_096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=128_256, num_labels=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    layer = 2 * 4_096**2 + 2 * 4_096 * 1_024 + 3 * 4_096 * 14_336
    lengths = PairLengths(chosen=np.array([600]), rejected=np.array([400]), prefix=np.array([300]))

    assert is_trimmable(model.base_model)
    forward = (
        700 * 2 * (31 * layer + 2 * 4_096 * 1_024)  # the last layer's keys and values
        + 2
        * 2
        * (layer - 2 * 4_096 * 1_024 + 4_096)  # the rest of that layer and the head, per reward
        + 31 * 4 * 4_096 * (600 * 601 + 400 * 401 - 300 * 301) // 2
        + 4 * 4_096 * (600 + 400)
    )
    assert ModelFlops.of(model).training(lengths) == 3 * forward


LENGTHS = st.tuples(st.integers(1, 500), st.integers(1, 500), st.integers(0, 499)).map(
    lambda drawn: (drawn[0], drawn[1], min(drawn[2], drawn[0] - 1, drawn[1] - 1))
)
WINDOWS = st.none() | st.integers(1, 600)


def lengths_of(*pairs: tuple[int, int, int]) -> PairLengths:
    chosen, rejected, prefix = (np.array(column) for column in zip(*pairs, strict=True))
    return PairLengths(chosen=chosen, rejected=rejected, prefix=prefix)


def model_of(window: int | None) -> ModelFlops:
    layer = LayerFlops(token=7, product=3, window=window)
    plain = LayerFlops(token=5, product=2)
    return ModelFlops(
        layers=(layer, plain), last=TrimmedFlops(token=2, reward=11, product=3), head=13
    )


@given(st.lists(LENGTHS, min_size=1, max_size=8), WINDOWS)
def test_pairs_need_the_same_flops_together_and_alone(
    pairs: list[tuple[int, int, int]], window: int | None
):
    flops = model_of(window)

    alone = [flops.training(lengths_of(pair))[0] for pair in pairs]
    assert flops.training(lengths_of(*pairs)).tolist() == alone


@given(LENGTHS, WINDOWS)
def test_a_longer_pair_needs_more_and_a_longer_shared_prefix_less(
    pair: tuple[int, int, int], window: int | None
):
    chosen, rejected, prefix = pair
    flops = model_of(window).training(
        lengths_of(pair, (chosen + 1, rejected, prefix), (chosen, rejected + 1, prefix))
    )
    assert flops[0] < flops[1] and flops[0] < flops[2]
    if prefix:
        more_distinct = model_of(window).training(lengths_of((chosen, rejected, prefix - 1)))[0]
        assert flops[0] < more_distinct


@given(LENGTHS, st.integers(1, 600))
def test_a_window_allows_the_nearest_keys(pair: tuple[int, int, int], window: int):
    chosen, rejected, prefix = pair
    tokens = [*range(chosen), *range(prefix, rejected)]  # positions of distinct tokens

    seen = sum(min(place + 1, window) for place in tokens)
    assert lengths_of(pair).attended_within(window) == seen
    assert lengths_of(pair).attended_within(None) == sum(place + 1 for place in tokens)
