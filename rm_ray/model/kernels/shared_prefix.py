"""Attention of tails over the prefix that they share, and over themselves, joined exactly.

A query's softmax over two sets of keys is the sum of the softmax over each, weighed by its share of
the exponentials (FlashAttention-2, arXiv:2307.08691, p. 5). Backward needs no more: the kernel
recomputes probabilities from the log-sum-exp, so that with the joint one and the joint output each
part gives its own share of the gradients. Only CPUs have the kernel called here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rm_ray.batches.attention_index import BranchGroup, GroupedQueries
from rm_ray.batches.shared_prefix_index import SharedPrefix, SharedTails

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attend_over_shared_prefixes(
    query: Tensor, key: Tensor, value: Tensor, tails: SharedTails, *, scaling: float
) -> Tensor:
    """Return the attention of M queries of tails over the T keys of their row.

    Shapes: ``query`` and the result ``[M, H, D]``, ``key`` and ``value`` ``[T, H', D]``, all of
    one dtype; H is a multiple of H'.
    """
    attend: Any = _SharedPrefixAttention.apply
    output: Tensor = attend(query, key, value, tails, scaling)
    return output


class _SharedPrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tails: SharedTails, scaling: float
    ) -> Tensor:
        """Attend over prefixes and tails apart, and join the two."""
        over_prefix, prefix_sums = _over_prefixes(query, key, value, tails, scaling)
        over_tail, tail_sums = _over_tails(query, key, value, tails.own, scaling)
        sums = torch.logaddexp(prefix_sums, tail_sums)
        joint = over_prefix * (prefix_sums - sums).exp()[..., None]  # float32, or float64
        joint += over_tail * (tail_sums - sums).exp()[..., None]
        output = joint.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.tails, ctx.scaling = tails, scaling
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value: the sums of both parts'."""
        query, key, value, output, sums = ctx.saved_tensors
        grad = grad.contiguous()  # the kernel does not check strides
        tails: SharedTails = ctx.tails
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        num_shared = key.shape[1]
        for prefix in tails.prefixes:
            mine, keys = _slices(prefix)
            gradients = _flash_backward(
                *(_fold(tensor[mine], num_shared) for tensor in (grad, query)),
                *(_as_batch(tensor[keys], 1) for tensor in (key, value)),
                *(_fold(tensor[mine], num_shared) for tensor in (output, sums)),
                0.0,
                False,
                scale=ctx.scaling,
            )
            of_query[mine] = _unfold(gradients[0], query.shape[1])
            of_key[keys] += gradients[1][0].transpose(0, 1)
            of_value[keys] += gradients[2][0].transpose(0, 1)
        _add_tail_gradients(
            (grad, query, key, value, output, sums),
            (of_query, of_key, of_value),
            tails.own,
            ctx.scaling,
        )
        return of_query, of_key, of_value, None, None


def _over_prefixes(
    query: Tensor, key: Tensor, value: Tensor, tails: SharedTails, scaling: float
) -> tuple[Tensor, Tensor]:
    """Return output ``[M, H, D]`` and log-sum-exps ``[M, H]`` over the prefixes alone."""
    outputs, sums = [], []
    for prefix in tails.prefixes:
        mine, keys = _slices(prefix)
        output, log_sums = _flash(
            _fold(query[mine], key.shape[1]),
            _as_batch(key[keys], 1),
            _as_batch(value[keys], 1),
            0.0,
            False,
            scale=scaling,
        )
        outputs.append(_unfold(output, query.shape[1]))
        sums.append(_unfold(log_sums, query.shape[1]))
    return torch.cat(outputs), torch.cat(sums)


def _over_tails(
    query: Tensor, key: Tensor, value: Tensor, own: GroupedQueries, scaling: float
) -> tuple[Tensor, Tensor]:
    """Return output ``[M, H, D]`` and log-sum-exps ``[M, H]`` over the tails alone."""
    outputs, sums = [], []
    queries = query.index_select(0, own.query_order)
    keys, values = (_repeat(tensor, own, query.shape[1]) for tensor in (key, value))
    for group, of_queries, of_keys in _stretches(own):
        size = len(group.query_ranks)
        output, log_sums = _flash(
            _as_batch(queries[of_queries], size),
            _as_batch(keys[of_keys], size),
            _as_batch(values[of_keys], size),
            0.0,
            True,
            scale=scaling,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
        sums.append(log_sums.transpose(1, 2).flatten(0, 1))
    output, log_sums = (torch.cat(parts).index_select(0, own.outputs) for parts in (outputs, sums))
    return output, log_sums


def _add_tail_gradients(
    saved: tuple[Tensor, ...],
    gradients: tuple[Tensor, Tensor, Tensor],
    own: GroupedQueries,
    scaling: float,
) -> None:
    """Add to the gradients of query, key and value what the tails alone give."""
    grad, query, key, value, output, sums = saved
    heads, shape = query.shape[1], (len(own.query_order), *query.shape[1:])
    # Queries that repeat another as padding have no gradient.
    grads = grad.new_zeros(shape).index_copy_(0, own.outputs, grad)
    queries, outputs, log_sums = (
        tensor.index_select(0, own.query_order) for tensor in (query, output, sums)
    )
    keys, values = (_repeat(tensor, own, heads) for tensor in (key, value))
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for group, of_queries, of_keys in _stretches(own):
        size = len(group.query_ranks)
        found = _flash_backward(
            *(_as_batch(tensor[of_queries], size) for tensor in (grads, queries)),
            *(_as_batch(tensor[of_keys], size) for tensor in (keys, values)),
            *(_as_batch(tensor[of_queries], size) for tensor in (outputs, log_sums)),
            0.0,
            True,
            scale=scaling,
        )
        for part, tensor in zip(parts, found, strict=True):
            part.append(tensor.transpose(1, 2).flatten(0, 1))
    of_query, of_key, of_value = (torch.cat(part) for part in parts)
    gradients[0].add_(of_query.index_select(0, own.outputs))
    for total, mine in zip(gradients[1:], (of_key, of_value), strict=True):
        shared = mine.view(len(mine), key.shape[1], -1, key.shape[2]).sum(2)
        total.index_add_(0, own.key_positions, shared)


def _stretches(own: GroupedQueries) -> Iterator[tuple[BranchGroup, slice, slice]]:
    """Yield every group of branches with its stretches of padded queries and keys."""
    query = key = 0
    for group in own.groups:
        end_query = query + group.query_ranks.numel()
        end_key = key + len(group.query_ranks) * group.num_keys
        yield group, slice(query, end_query), slice(key, end_key)
        query, key = end_query, end_key


def _slices(prefix: SharedPrefix) -> tuple[slice, slice]:
    return slice(prefix.first_query, prefix.end_query), slice(prefix.first_key, prefix.end_key)


def _repeat(keys: Tensor, own: GroupedQueries, heads: int) -> Tensor:
    """Gather the tails' keys, once for each of the heads that share them: ``[K, H, D]``."""
    gathered = keys.index_select(0, own.key_positions)
    return gathered.repeat_interleave(heads // keys.shape[1], dim=1)


def _as_batch(rows: Tensor, num_branches: int) -> Tensor:
    """Reshape ``[G L, H, ...]`` to ``[G, H, L, ...]``."""
    return rows.view(num_branches, -1, *rows.shape[1:]).transpose(1, 2)


def _fold(rows: Tensor, num_shared: int) -> Tensor:
    """Reshape ``[L, H, ...]`` to ``[1, H', H/H' L, ...]``: heads that share keys become queries."""
    length, heads, *size = rows.shape
    by_keys = rows.reshape(length, num_shared, heads // num_shared, *size)
    return by_keys.movedim(0, 2).flatten(1, 2)[None]


def _unfold(folded: Tensor, heads: int) -> Tensor:
    """Reshape ``[1, H', H/H' L, ...]`` to ``[L, H, ...]``."""
    _, num_shared, _, *size = folded.shape
    by_heads = folded.reshape(num_shared, heads // num_shared, -1, *size)
    return by_heads.movedim(2, 0).flatten(1, 2)
