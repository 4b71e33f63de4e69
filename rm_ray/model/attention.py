"""Attention over packed pairs: each branch sees its prefix and itself, nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    PretrainedConfig,
)

from rm_ray.batches.attention_index import (
    BranchGroup,
    GroupedQueries,
    Kernel,
    VarlenQueries,
)
from rm_ray.batches.packing import PackedGroups
from rm_ray.batches.shared_prefix_index import Queries, SharedQueries
from rm_ray.model.kernels.shared_prefix import attend_over_shared_prefixes

PACKED_ATTENTION = "packed_pairs"
"""Name of ``packed_attention`` in transformers' attention registry."""

PACKABLE = frozenset({"llama", "mistral", "qwen2", "qwen3", "olmo2", "olmo3", "gemma", "gpt_neox"})
"""Decoder families whose packed rewards and gradients are tested against padded ones."""


def why_not_packed(architecture: PretrainedConfig) -> str | None:
    """Return why a model cannot train on packed pairs, judged by its config; None if it can."""
    settings = architecture.to_dict()
    kinds = set(settings.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if architecture.model_type not in PACKABLE:
        return f"'{architecture.model_type}' is not one of {', '.join(sorted(PACKABLE))}"
    if kinds:
        return f"it has {', '.join(sorted(kinds))} layers"
    if settings.get("use_bidirectional_attention"):
        return "its attention is bidirectional"
    rope = (settings.get("rope_parameters") or {}).get("rope_type")
    if rope in ("dynamic", "longrope"):
        return f"its '{rope}' rotary embeddings depend on the longest sequence of the batch"
    return None


def choose_kernel(device: torch.device, dtype: torch.dtype, *, head_size: int) -> Kernel:
    """Return the fastest kernel for a device: flash attention on Ampere GPUs and later."""
    if device.type == "cpu":
        return "shared"
    if device.type != "cuda" or not suits_flash(dtype, head_size=head_size):
        return "grouped"
    return "varlen" if torch.cuda.get_device_capability(device) >= (8, 0) else "grouped"


def suits_flash(dtype: torch.dtype, *, head_size: int) -> bool:
    """Return whether flash attention supports it: half precision, head size 8, 16, ..., 256."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and head_size % 8 == 0 and head_size <= 256


def head_size(architecture: PretrainedConfig) -> int:
    """Return the size of one attention head."""
    config = architecture.get_text_config()
    width: int | None = config.to_dict().get("head_dim")
    return width or config.hidden_size // config.num_attention_heads


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed: PackedGroups,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within a row of packed pairs; transformers' attention modules call this.

    Shapes: T tokens, H query heads and H' key-value heads of size D. ``query`` is
    ``[1, H, T, D]``, ``key`` and ``value`` are ``[1, H', T, D]``; the result is ``[1, T, H, D]``.
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if packed.cached is not None:
        number: Any = module.layer_idx
        key, value = packed.cached.extend(number, key, value)
    output = attend(query, key, value, packed.everywhere, scaling=scaling, window=sliding_window)
    return output[None], None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Queries,
    *,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Return the attention of N queries over the keys of all T tokens, with those that are cached.

    Shapes: ``query`` and the result ``[N, H, D]``, ``key`` and ``value`` ``[T, H', D]``. With a
    ``window``, a query sees that many of its branch's keys, including its own.
    """
    if isinstance(queries, VarlenQueries):
        return _varlen(query, key, value, queries, scaling, window)
    if isinstance(queries, SharedQueries):
        return _shared(query, key, value, queries, scaling, window)
    return _grouped(query, key, value, queries, scaling, window)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: VarlenQueries,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Make one flash-attention call over all branches; ``[N, H, D]`` in and out."""
    from torch.nn.attention.varlen import varlen_attn  # late: importing it compiles for 2 s

    # Rotary embeddings leave queries and keys in float32 under autocast.
    query, key = query.to(value.dtype), key.to(value.dtype)
    output = varlen_attn(
        query,
        key.index_select(0, packed.key_positions),
        value.index_select(0, packed.key_positions),
        packed.query_starts,
        packed.key_starts,
        packed.max_queries,
        packed.max_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **_gqa_options(varlen_attn),
    )
    assert isinstance(output, Tensor)  # a tuple only if auxiliary outputs are requested
    return output


@lru_cache
def _gqa_options(varlen_attn: Callable[..., Any]) -> dict[str, Any]:
    """Return the option that lets heads share keys; torch 2.11 always does and has no option."""
    has_option = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return {"enable_gqa": True} if has_option else {}


def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: GroupedQueries,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Call scaled_dot_product_attention once per group; ``[N, H, D]`` in and out."""
    key, value = (tensor.index_select(0, packed.key_positions) for tensor in (key, value))
    times = query.shape[1] // key.shape[1]
    if times > 1 and _repeats_keys(query):
        repeated = (tensor[:, :, None].expand(-1, -1, times, -1) for tensor in (key, value))
        key, value = (tensor.flatten(1, 2) for tensor in repeated)
    num_queries = [group.query_ranks.numel() for group in packed.groups]
    num_keys = [len(group.query_ranks) * group.num_keys for group in packed.groups]
    queries = torch.split(query.index_select(0, packed.query_order), num_queries)
    keys, values = torch.split(key, num_keys), torch.split(value, num_keys)
    outputs = []
    for group, q, k, v in zip(packed.groups, queries, keys, values, strict=True):
        size, mask = len(group.query_ranks), _mask(group, window)
        output = F.scaled_dot_product_attention(
            _as_batch(q, size),
            _as_batch(k, size),
            _as_batch(v, size),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, packed.outputs)


def _shared(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: SharedQueries,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend over each prefix once for all its tails; ``[N, H, D]`` in and out."""
    if window is not None and window < int(packed.branches.num_keys.max()):
        return _grouped(query, key, value, packed.apart, scaling, window)
    query, key = query.to(value.dtype), key.to(value.dtype)  # as autocast would
    tails = packed.tails
    output = torch.cat(
        [
            _grouped(query, key, value, packed.rest, scaling, None),
            attend_over_shared_prefixes(
                query.index_select(0, tails.positions), key, value, tails, scaling=scaling
            ),
        ]
    )
    return output.index_select(0, packed.outputs)


def _repeats_keys(query: Tensor) -> bool:
    """Return whether to repeat keys and values for every head that shares them.

    On GPUs, with a mask or in float32, only PyTorch's math kernel supports shared keys, and it
    keeps all attention probabilities in memory.
    """
    return query.is_cuda


def _as_batch(rows: Tensor, num_branches: int) -> Tensor:
    """Reshape ``[G L, H, D]`` to ``[G, H, L, D]``."""
    return rows.view(num_branches, -1, *rows.shape[1:]).transpose(1, 2)


def _mask(group: BranchGroup, window: int | None) -> Tensor | None:
    """Return which keys each query sees, ``[G, 1, Q, K]``; None for plain causal attention."""
    if window is None or window >= group.num_keys:
        return group.mask
    ranks = group.query_ranks[:, None, :, None]
    keys = torch.arange(group.num_keys, device=ranks.device)
    return (keys <= ranks) & (keys > ranks - window)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
