"""Variable-length attention on CPUs, so that the path of GPUs runs here as it is.

PyTorch's ``varlen_attn`` is flash attention and runs on CUDA alone. This registers its operator and
the operator's gradient for CPU tensors, written from the documentation of ``varlen_attn`` in plain
arithmetic, one sequence at a time. What calls them stays PyTorch's own: the checks before the
operator, what is saved, and what goes back. It takes float32 and float64 besides half precision,
and refuses whatever else flash attention refuses.
"""

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


@functools.cache
def register_varlen_on_cpu() -> None:
    """Give this process the operator on CPUs; it is not taken back."""
    from torch.nn.attention import varlen  # registers the operator itself

    assert varlen.varlen_attn
    torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", _forward)
    torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", _backward)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor | None,
    max_queries: int,
    max_keys: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: Sequence[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output ``[T, H, D]``, log-sum-exps ``[H, T]``, and random numbers not used.

    ``query`` is ``[T, H, D]``, ``key`` and ``value`` ``[K, H', D]``; S sequences begin and end at
    the ``[S + 1]`` starts of either.
    """
    assert key_starts is not None and seqused_k is None and block_table is None, "not modelled"
    check_like_flash(query, key, value)
    for starts, rows, most in (
        (query_starts, query, max_queries),
        (key_starts, key, max_keys),
    ):
        _check_starts(starts, len(rows), most)
    precise, window = _precision(query), _window(window_size, is_causal)
    output = torch.empty_like(query)
    sums = torch.empty(query.shape[1], len(query), dtype=precise)
    for queries, keys in _sequences(query_starts, key_starts):
        q, k, v = _heads(query[queries], key[keys], value[keys], precise)
        scores = _scores(q, k, scale, window)
        sums[:, queries] = scores.logsumexp(-1)
        weights = (scores - sums[:, queries, None]).exp()
        output[queries] = (weights @ v).transpose(0, 1).to(output.dtype)
    return output, sums, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    max_queries: int,
    max_keys: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value (arXiv:2307.08691, algorithm 2)."""
    if grad_output.dtype != query.dtype or grad_output.stride(-1) != 1:
        raise RuntimeError(
            f"the gradient must be {query.dtype} with adjacent last elements, got "
            f"{grad_output.dtype} of strides {grad_output.stride()}"
        )
    precise, window = _precision(query), _window(window_size, is_causal)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    gradients = [torch.zeros(tensor.shape, dtype=precise) for tensor in (query, key, value)]
    for queries, keys in _sequences(query_starts, key_starts):
        q, k, v = _heads(query[queries], key[keys], value[keys], precise)
        weights = (_scores(q, k, scale, window) - sums[:, queries, None]).exp()
        grad = grad_output[queries].to(precise).transpose(0, 1)
        kept = (grad * output[queries].to(precise).transpose(0, 1)).sum(-1, keepdim=True)
        grad_scores = weights * (grad @ v.mT - kept) * factor
        gradients[0][queries] = (grad_scores @ k).transpose(0, 1)
        for gradient, of_heads in (
            (gradients[1], grad_scores.mT @ q),
            (gradients[2], weights.mT @ grad),
        ):
            shared = of_heads.unflatten(0, (gradient.shape[1], -1)).sum(1)
            gradient[keys] = shared.transpose(0, 1)
    dq, dk, dv = (gradient.to(query.dtype) for gradient in gradients)
    return dq, dk, dv


def _sequences(query_starts: Tensor, key_starts: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield which rows are a sequence's queries, and which its keys."""
    q, k = query_starts.tolist(), key_starts.tolist()
    for i in range(len(q) - 1):
        yield slice(q[i], q[i + 1]), slice(k[i], k[i + 1])


def _heads(q: Tensor, k: Tensor, v: Tensor, precise: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``[H, length, D]`` each, with a copy of keys and values for each head of queries."""
    sharing = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(sharing, dim=1), v.repeat_interleave(sharing, dim=1)
    return tuple(rows.to(precise).transpose(0, 1) for rows in (q, k, v))  # type: ignore[return-value]


def _scores(q: Tensor, k: Tensor, scale: float | None, window: tuple[int, int]) -> Tensor:
    """Return ``[H, Q, K]``, minus infinity where a query does not see a key.

    Unequal numbers are aligned at the end: the last query has the rank of the last key.
    """
    num_queries, num_keys = q.shape[1], k.shape[1]
    ranks = torch.arange(num_queries)[:, None] + num_keys - num_queries
    keys = torch.arange(num_keys)[None]
    left, right = window
    unseen = torch.zeros(num_queries, num_keys, dtype=torch.bool)
    if left >= 0:
        unseen |= keys < ranks - left
    if right >= 0:
        unseen |= keys > ranks + right
    if unseen.all(-1).any():
        raise RuntimeError(f"a query sees none of {num_keys} keys (of {num_queries} queries)")
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(unseen, -torch.inf)


def _window(window_size: Sequence[int] | None, is_causal: bool) -> tuple[int, int]:
    """Return how many keys before and after its own rank a query sees; -1 for all."""
    left, right = (-1, -1) if window_size is None else window_size
    return left, 0 if is_causal else right


def _precision(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def check_like_flash(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Refuse what flash attention refuses, but for whole precision.

    Raises:
        RuntimeError: what is wrong with the tensors.
    """
    if query.dtype not in (*HALF, torch.float32, torch.float64):
        raise RuntimeError(f"queries must be of a float type, got {query.dtype}")
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(
            f"query, key and value must have one dtype, got {query.dtype}, {key.dtype}, "
            f"{value.dtype}"
        )
    num_heads, size = query.shape[1:]
    if size % 8 or size > 256:
        raise RuntimeError(f"a head must be 8, 16, ... or 256 wide, got {size}")
    if key.shape != value.shape or key.shape[2] != size or num_heads % key.shape[1]:
        raise RuntimeError(
            f"keys {list(key.shape)} and values {list(value.shape)} do not suit queries "
            f"{list(query.shape)}"
        )
    if any(tensor.stride(-1) != 1 for tensor in (query, key, value)):
        raise RuntimeError("the last elements of query, key and value must be adjacent")


def _check_starts(starts: Tensor, total: int, most: int) -> None:
    """Refuse starts that the kernel would misread.

    Raises:
        RuntimeError: which rule they break.
    """
    if starts.dtype != torch.int32 or not starts.is_contiguous():
        raise RuntimeError(f"starts must be contiguous and int32, got {starts.dtype}")
    lengths = starts.diff()
    if starts[0] != 0 or starts[-1] != total or (lengths < 0).any():
        raise RuntimeError(f"starts must rise from 0 to {total}, got {starts.tolist()}")
    if lengths.max() > most:
        raise RuntimeError(f"a sequence has {int(lengths.max())} tokens, but at most {most} said")
