"""A model's FLOPs equal what PyTorch counts in real passes over real pairs."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, lay_out, some_groups
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_ray.batches import attention_index
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.group_tokens import GroupLengths, join_groups
from rm_ray.model import attention
from rm_ray.model.flops import LayerFlops, ModelFlops, TrimmedFlops
from rm_ray.model.last_layer import is_trimmable
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.trainable import choose_trained, outline_trained

SOME_GROUPS = some_groups([2, 1, 3, 2, 5], seed=4)


def count(model: RewardModel, layout: Layout) -> dict[str, dict[str, int]]:
    """Return the FLOPs of matrices and attention in a forward and a backward pass.

    PyTorch's math kernel uses ``bmm`` for attention; everything else uses other products.
    """
    flops, counter = {}, FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        for name in ("forward", "backward"):
            with counter:
                if name == "forward":
                    rewards = model(lay_out(SOME_GROUPS, layout))
                else:
                    rewards.sum().backward()
            by_operator = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
            flops[name] = {
                "matrices": sum(n for op, n in by_operator.items() if op != "aten.bmm"),
                "attention": by_operator.get("aten.bmm", 0),
            }
    return flops


@pytest.mark.parametrize("name", FAMILIES)
def test_matrices_are_counted_to_the_flop_in_packed_passes(tmp_path: Path, name: str):
    model = build(tmp_path, name, "packed")
    counted = count(model, "packed")
    flops = ModelFlops.of(model.classifier)

    assert counted["forward"]["matrices"] == flops.matrices(SOME_GROUPS.lengths).sum()
    assert counted["backward"]["matrices"] == 2 * counted["forward"]["matrices"]
    assert counted["backward"]["attention"] == 2 * counted["forward"]["attention"]


@pytest.mark.parametrize("name", ["mistral-window", "gpt_neox"])
@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        ("last:1", LoraConfig()),
        ("head", LoraConfig()),
        ("all", LoraConfig(rank=3, train_embeddings=True)),
    ],
    ids=str,
)
def test_gradients_of_a_part_are_counted_to_the_flop(tmp_path, name, trainable, lora):
    model = build(tmp_path, name, "packed")
    config = ModelConfig(trainable=trainable)
    choose_trained(model, config, lora, seed=0, dtype=torch.float32)
    flops = ModelFlops.of(model.classifier)
    counted = count(model, "packed")
    for each, part in (("forward", flops), ("backward", flops.gradients)):
        assert counted[each]["matrices"] == part.matrices(SOME_GROUPS.lengths).sum()


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
    for prefix, *tails in ((0, 9, 6), (0, 23, 23), (8, 9, 4), (2, 28, 1), (9, 1), (5, 9, 4, 7, 1)):
        ids = iter(range(3, 200))
        shared = list(islice(ids, prefix))
        group = join_groups([[shared + list(islice(ids, tail)) for tail in tails]])
        seen[0] = 0.0
        model(lay_out(group, "packed"))

        assert seen[0] == flops(group.lengths).sum()


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
    lengths = lengths_of((300, 300, 100))

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


def test_frozen_weights_need_no_gradients_and_layers_below_the_trained_ones_no_backward_pass():
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=160, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=100, num_labels=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    lengths = lengths_of((300, 300, 100), (5, 7, 9))
    everything = ModelFlops.of(model)
    forward = everything.forward(lengths)
    matrices, attention = everything.matrices(lengths), everything.attention(lengths)
    assert (everything.reached.forward(lengths) == forward).all()

    def of(trainable: str, **lora: Any) -> ModelFlops:
        settings = ModelConfig(trainable=trainable), LoraConfig(**lora)
        return ModelFlops.of(outline_trained(model, *settings))

    # Adapters of rank 1 add little: frozen matrices pass gradients on, attention has two factors.
    lora = of("all", rank=1)
    assert lora.forward(lengths) == pytest.approx(forward, rel=0.06)
    expected = lora.forward(lengths) + matrices + 2 * attention
    assert lora.training(lengths) == pytest.approx(expected, rel=0.05)
    assert (lora.training(lengths) > expected).all()
    last, head = of("last:1"), of("head")
    of_last = replace(everything, layers=()).forward(lengths)
    assert (last.forward(lengths) == forward).all()
    assert (last.training(lengths) == forward + 2 * of_last).all()
    assert (last.reached.forward(lengths) == of_last).all()
    assert (head.training(lengths) == forward + 2 * 64 * lengths.num_responses).all()
    with_embeddings = of("all", rank=1, targets=("layers.3.mlp.up_proj",), train_embeddings=True)
    layers = with_embeddings.layers
    assert [layer.backward for layer in layers] == [1.0] * 3
    assert of("all", rank=1, targets=("layers.2.mlp.up_proj",)).layers[1].backward == 0.0


Shape = tuple[int, ...]
"""Tokens of a group's prefix, and of the tail of each of its conversations."""

SHAPES = st.builds(
    lambda prefix, tails: (prefix, *tails),
    st.integers(0, 499),
    st.lists(st.integers(1, 500), min_size=1, max_size=5),
)
WINDOWS = st.none() | st.integers(1, 600)


def lengths_of(*shapes: Shape) -> GroupLengths:
    return GroupLengths(
        num_responses=np.array([len(tails) for _, *tails in shapes]),
        prefix=np.array([prefix for prefix, *_ in shapes]),
        conversations=np.array([prefix + tail for prefix, *tails in shapes for tail in tails]),
    )


def model_of(window: int | None) -> ModelFlops:
    layer = LayerFlops(token=7, product=3, window=window)
    plain = LayerFlops(token=5, product=2)
    return ModelFlops(
        layers=(layer, plain), last=TrimmedFlops(token=2, reward=11, product=3), head=13
    )


@given(st.lists(SHAPES, min_size=1, max_size=8), WINDOWS)
def test_groups_need_the_same_flops_together_and_alone(shapes: list[Shape], window: int | None):
    flops = model_of(window)

    alone = [flops.training(lengths_of(shape))[0] for shape in shapes]
    assert flops.training(lengths_of(*shapes)).tolist() == alone


@given(SHAPES, WINDOWS)
def test_a_longer_response_needs_more_and_a_longer_shared_prefix_less(
    shape: Shape, window: int | None
):
    prefix, *tails = shape
    longer = [
        (prefix, *(tail + (k == place) for k, tail in enumerate(tails)))
        for place in range(len(tails))
    ]
    flops = model_of(window).training(lengths_of(shape, *longer)).tolist()
    assert flops[0] < min(flops[1:])
    if prefix and len(tails) > 1:
        less_shared = (prefix - 1, *(tail + 1 for tail in tails))
        assert flops[0] < model_of(window).training(lengths_of(less_shared))[0]


@given(SHAPES, WINDOWS)
def test_another_response_needs_what_its_own_tokens_do(shape: Shape, window: int | None):
    """A tail's tokens cost what they do in any group: they attend to the prefix and themselves."""
    prefix, *tails = shape
    flops = model_of(window)

    def more(*before: int) -> float:
        grown = flops.training(lengths_of((prefix, *before, 7), (prefix, *before)))
        return float(grown[0] - grown[1])

    assert more(*tails) == more(tails[0])


@given(SHAPES, st.integers(1, 600))
def test_a_window_allows_the_nearest_keys(shape: Shape, window: int):
    prefix, *tails = shape  # tokens: positions of distinct tokens
    tokens = [*range(prefix), *(prefix + i for tail in tails for i in range(tail))]

    seen = sum(min(place + 1, window) for place in tokens)
    assert lengths_of(shape).attended_within(window) == seen
    assert lengths_of(shape).attended_within(None) == sum(place + 1 for place in tokens)
