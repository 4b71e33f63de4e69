"""Tails computed over a shared prefix together, beside dense attention in float64."""

from typing import Any

import pytest
import torch
from families import build_in_float64, check_equal, rewards_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_shapes import Shape, of_shapes, pack, shapes_of_groups
from torch import Tensor

from rm_ray.batches import shared_prefix_index
from rm_ray.batches.collate import unlabelled
from rm_ray.batches.packing import PackedGroups, pack_groups
from rm_ray.batches.shared_prefix_index import SharedQueries
from rm_ray.model.attention import attend

SHARED: list[Shape] = [(5, 3, 4, 2), (0, 2, 3), (7, 1, 1, 1, 1, 9), (3, 2, 2), (40, 9, 8, 7, 6)]


def dense(query: Tensor, key: Tensor, value: Tensor, shapes: list[Shape], scaling: float) -> Tensor:
    """Attend with one mask for the whole row."""
    group, part, place = (
        torch.tensor(column)
        for column in zip(
            *(
                (i, j, position + (shape[0] if j else 0))
                for i, shape in enumerate(shapes)
                for j, length in enumerate(shape)
                for position in range(length)
            ),
            strict=True,
        )
    )
    sees = (group[:, None] == group) & ((part == 0) | (part[:, None] == part))
    sees &= place <= place[:, None]
    times = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(times, dim=1) for tensor in (key, value))
    products = torch.einsum("qhd,khd->hqk", query, key) * scaling
    shares = products.masked_fill(~sees, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", shares, value)


def random_inputs(
    packed: PackedGroups, heads: int, shared: int, dtype: torch.dtype
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = packed.input_ids.numel()
    return [
        torch.randn(tokens, count, 16, dtype=torch.float64, generator=generator)
        .to(dtype)
        .requires_grad_()
        for count in (heads, shared, shared)
    ]


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    return [output, *torch.autograd.grad((output.double() * weights).sum(), inputs)]


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.1)],
)
def test_outputs_and_gradients_are_those_of_dense_attention(heads, shared, dtype, tolerance):
    packed = pack(SHARED, "shared")
    assert isinstance(packed.everywhere, SharedQueries)
    inputs = random_inputs(packed, heads, shared, dtype)

    ours = with_gradients(attend(*inputs, packed.everywhere, scaling=0.25, window=None), inputs)
    exact: list[Any] = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = with_gradients(dense(*exact, SHARED, 0.25), exact)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=tolerance)


@settings(max_examples=20)
@given(shapes_of_groups, st.sampled_from([1, 40]))
def test_any_groups_attend_as_dense_attention_does(shapes: list[Shape], min_shared: int):
    packed = pack(shapes, "shared", min_shared=min_shared)
    inputs = random_inputs(packed, 4, 2, torch.float64)

    ours = with_gradients(attend(*inputs, packed.everywhere, scaling=0.25, window=None), inputs)
    expected = with_gradients(dense(*inputs, shapes, 0.25), inputs)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama-grouped", "mistral-window", "gemma", "gpt_neox"])
def test_lists_are_rewarded_as_with_keys_of_their_own(tmp_path, monkeypatch, name):
    monkeypatch.setattr(shared_prefix_index, "MIN_SHARED", 1)
    groups = of_shapes([(5, 3, 4, 2), (6, 2, 3), (7, 1, 1, 1, 9)])
    groups = type(groups)(tokens=groups.tokens % 40 + 3, lengths=groups.lengths)
    found = []
    for kernel in ("grouped", "shared"):
        packed = pack_groups(groups, unlabelled(groups), kernel=kernel)
        assert isinstance(packed.everywhere, SharedQueries) == (kernel == "shared")
        model = build_in_float64(tmp_path, name, "packed")
        found.append(rewards_and_gradients(model, packed))
    check_equal(*found)
