"""The GPUs' variable-length path on CPUs, with a stand-in for flash attention only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, build, build_in_float64, check_equal, lay_out, rewards_and_gradients
from families import some_groups as draw_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from varlen_operator import register_varlen_on_cpu

from rm_ray.batches.attention_index import VarlenQueries
from rm_ray.model.attention import attend

register_varlen_on_cpu()

HEADS = [(2, 2), (4, 2), (4, 1), (8, 2)]
WINDOWS = [None, 1, 2, 5, 100]


def starts_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def random_heads(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 6)), min_size=1, max_size=5),
    st.sampled_from(HEADS),
    st.sampled_from([(-1, -1), (-1, 0), (0, 0), (3, 0), (2, 1)]),
)
def test_the_stand_in_is_scaled_dot_product_attention_aligned_at_the_end(lengths, heads, window):
    num_queries = [queries for queries, _ in lengths]
    num_keys = [queries + more for queries, more in lengths]
    query = random_heads(sum(num_queries), heads[0], 8, seed=0)
    key, value = (random_heads(sum(num_keys), heads[1], 8, seed=seed) for seed in (1, 2))
    found, sums = varlen.varlen_attn(
        query, key, value, starts_of(num_queries), starts_of(num_keys), max(num_queries),
        max(num_keys), scale=0.3, window_size=window, enable_gqa=True,
        return_aux=varlen.AuxRequest(lse=True),
    )  # fmt: skip
    expected, expected_sums = [], []
    for q, k, v in zip(query.split(num_queries), key.split(num_keys), value.split(num_keys),
                       strict=True):  # fmt: skip
        rank = torch.arange(len(k) - len(q), len(k))[:, None]
        seen = torch.ones(len(q), len(k), dtype=torch.bool)
        if window[0] >= 0:
            seen &= torch.arange(len(k)) >= rank - window[0]
        if window[1] >= 0:
            seen &= torch.arange(len(k)) <= rank + window[1]
        q, k, v = (rows.transpose(0, 1)[None] for rows in (q, k, v))
        expected.append(
            F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True)[0]
        )
        k = k[0].repeat_interleave(heads[0] // heads[1], dim=0)
        scores = (torch.einsum("hqd,hkd->hqk", q[0], k) * 0.3).masked_fill(~seen, -torch.inf)
        expected_sums.append(scores.exp().sum(-1).log())
    torch.testing.assert_close(found, torch.cat(expected, dim=1).transpose(0, 1))
    torch.testing.assert_close(sums, torch.cat(expected_sums, dim=1))


@pytest.mark.parametrize("window", [(-1, 0), (2, 0)])
def test_the_stand_in_s_gradient_matches_finite_differences(window):
    starts = starts_of([3, 1, 2]), starts_of([3, 5, 4])
    query = random_heads(6, 4, 8, seed=0).requires_grad_()
    key, value = (random_heads(12, 2, 8, seed=seed).requires_grad_() for seed in (1, 2))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return varlen.varlen_attn(q, k, v, *starts, 3, 5, window_size=window, enable_gqa=True)

    assert torch.autograd.gradcheck(call, (query, key, value), fast_mode=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": lambda t: t.float()}, "one dtype"),
        ({"query_starts": lambda t: t.long()}, "int32"),
        ({"query_starts": lambda t: t + 1}, "rise from 0 to 5"),
        ({"key_starts": lambda t: t.flip(0).contiguous()}, "rise from 0 to 9"),
        ({"max_queries": lambda n: n - 1}, "3 tokens, but at most 2"),
        ({"max_keys": lambda n: n - 1}, "5 tokens, but at most 4"),
        ({"query": lambda t: t.mT.contiguous().mT}, "adjacent"),
        ({name: lambda t: t[..., :4].contiguous() for name in ("query", "key", "value")}, "wide"),
        ({"value": lambda t: t[:, :1]}, "do not suit"),
    ],
)
def test_the_stand_in_refuses_what_flash_attention_refuses(change, message):
    arguments: dict[str, Any] = {
        "query": random_heads(5, 4, 8, seed=0, dtype=torch.bfloat16),
        "key": random_heads(9, 2, 8, seed=1, dtype=torch.bfloat16),
        "value": random_heads(9, 2, 8, seed=2, dtype=torch.bfloat16),
        "query_starts": starts_of([3, 2]),
        "key_starts": starts_of([5, 4]),
        "max_queries": 3,
        "max_keys": 5,
    }
    assert varlen.varlen_attn(*arguments.values(), enable_gqa=True).dtype == torch.bfloat16
    changed = {name: change.get(name, lambda same: same)(arguments[name]) for name in arguments}
    with pytest.raises(RuntimeError, match=message):
        varlen.varlen_attn(*changed.values(), enable_gqa=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6),
    st.integers(0, 2**16),
    st.integers(1, 30),
    st.sampled_from(HEADS),
    st.sampled_from(WINDOWS),
    st.sampled_from(["everywhere", "at_ends"]),
)
def test_one_varlen_call_gives_the_attention_and_gradients_of_the_grouped_kernel(
    sizes, seed, longest, heads, window, which
):
    groups = draw_groups(sizes, seed=seed, longest=longest)
    results = []
    for kernel in ("varlen", "grouped"):
        packed = lay_out(groups, "packed", kernel)
        tokens = packed.input_ids.numel()
        num_queries = tokens if which == "everywhere" else sum(sizes)
        query = random_heads(num_queries, heads[0], 8, seed=0).requires_grad_()
        key, value = (random_heads(tokens, heads[1], 8, seed=i).requires_grad_() for i in (1, 2))
        output = attend(query, key, value, getattr(packed, which), scaling=0.3, window=window)
        (output * random_heads(*output.shape, seed=3)).sum().backward()
        results.append((output, query.grad, key.grad, value.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_rewards_and_gradients_of_padded_groups(tmp_path, name, recomputing):
    groups = draw_groups([2, 1, 3, 2, 5], seed=4)
    packed = lay_out(groups, "packed", "varlen")
    assert isinstance(packed.everywhere, VarlenQueries)
    model = build_in_float64(tmp_path, name, "packed", gradient_checkpointing=recomputing)
    check_equal(
        rewards_and_gradients(model, packed),
        rewards_and_gradients(
            build_in_float64(tmp_path, name, "padded"), lay_out(groups, "padded")
        ),
    )


class Calls(TorchDispatchMode):
    """Records the operator's arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.torch_attn._varlen_attn.default:
            self.seen.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_operator_gets_half_precision_and_a_bounded_window_in_every_layer(tmp_path, name):
    """For a single last query, the open window (-1, -1) gives the same attention, but flash
    attention takes another path for it and returns log-sum-exps of another shape."""
    groups = draw_groups([2, 2, 3, 1], seed=5)
    model = build(tmp_path, name, "packed")
    with Calls() as calls, torch.autocast("cpu", torch.bfloat16):
        rewards = model(lay_out(groups, "packed", "varlen"))
        expected = model(lay_out(groups, "packed", "grouped"))
    assert len(calls.seen) == 2
    for query, key, value, _, _, _, _, is_causal, _, window, shares_heads in calls.seen:
        assert {query.dtype, key.dtype, value.dtype} == {torch.bfloat16}
        assert is_causal is (window == [-1, 0])
        assert window[1] == 0
        assert shares_heads is True
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards, expected, rtol=0, atol=0.02)
    widths = {args[9][0] for args in calls.seen}
    asked = FAMILIES[name].get("sliding_window")
    assert (widths == {-1}) if asked is None else (asked - 1 in widths)
