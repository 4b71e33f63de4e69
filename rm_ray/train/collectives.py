"""Collectives for everything except gradients and weights.

Every rank must call each of them equally often and in the same order. Without a process group, or
with a single rank, they return their input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank."""
    if not _has_peers():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def sum_over_ranks(tensor: Tensor) -> None:
    """Sum a tensor over all ranks, in place."""
    if _has_peers():
        dist.all_reduce(tensor)


def sum_counts(counts: np.ndarray, device: torch.device) -> np.ndarray:
    """Return an integer array summed over all ranks, exchanged through ``device``."""
    tensor = torch.from_numpy(counts.copy()).to(device)
    sum_over_ranks(tensor)
    summed: np.ndarray = tensor.cpu().numpy()
    return summed


def merge_disjoint(values: np.ndarray, device: torch.device) -> np.ndarray:
    """Return a float array with the numbers of all ranks, exchanged through ``device``.

    Each element is a finite number on at most one rank, and NaN on the others.
    """
    if not _has_peers():
        return values
    tensor = torch.from_numpy(values).to(device)
    tensor = torch.where(tensor.isnan(), -torch.inf, tensor)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    merged: np.ndarray = torch.where(tensor == -torch.inf, torch.nan, tensor).cpu().numpy()
    return merged


def any_rank(votes: Sequence[bool], device: torch.device) -> list[bool]:
    """Return, per question, whether any rank votes yes; every rank gets the same answers."""
    ballot = torch.tensor(votes, dtype=torch.float32, device=device)
    sum_over_ranks(ballot)
    return [count > 0 for count in ballot.tolist()]


def sum_with_votes(sums: Tensor, votes: Sequence[bool]) -> Tensor:
    """Sum ``sums`` ``[N]`` and count V votes over all ranks in one all-reduce.

    Returns ``[N + V]`` on the device of ``sums`` without synchronizing with it. Once the numbers
    have been read, ``split_votes`` separates them.
    """
    ballot = sums.new_zeros(len(votes))
    for i, vote in enumerate(votes):
        ballot[i] += vote  # copying a tensor from the host would synchronize
    together = torch.cat([sums, ballot])
    sum_over_ranks(together)
    return together


def split_votes(numbers: Sequence[float], num_votes: int) -> tuple[list[float], list[bool]]:
    """Return the sums and, per question, whether any rank voted yes."""
    num_sums = len(numbers) - num_votes
    return list(numbers[:num_sums]), [count > 0 for count in numbers[num_sums:]]


def _has_peers() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
