"""Processes joined by gloo: real ranks on this machine, without Ray."""

import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS_PER_NODE = 2

LIBRARIES = [
    "accelerate",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # and PyTorch's compiler
    "torch.distributed.tensor",
    "transformers.models.llama.modeling_llama",
    "rm_ray.model.build",
    "rm_ray.train.engine",
]
"""What takes seconds to import."""


def spawn(
    function: Callable[..., None],
    world_size: int,
    *arguments: Any,
    start_method: Literal["forkserver", "spawn"] = "forkserver",
) -> None:
    """Run ``function(rank, *arguments)`` in processes joined by gloo.

    By default each process is a fork of one that has imported the ``LIBRARIES`` and done nothing
    else. It has the environment that the first call was made in. ``spawn`` shares nothing.
    """
    multiprocessing.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "store"
        mp.start_processes(
            _join,
            (world_size, meeting, function, arguments),
            nprocs=world_size,
            start_method=start_method,
        )


def _join(rank: int, world_size: int, meeting: Path, function: Any, arguments: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": str(rank // RANKS_PER_NODE),
        # Accelerate asks for them; the group is joined below, by a file.
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    warnings.simplefilter("ignore", FutureWarning)  # of DeepSpeed's own calls
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size
    )
    function(rank, *arguments)
    dist.destroy_process_group()


def call_collectives(rank: int, folder: Path) -> None:
    """Call every collective on values of this rank, and leave what each returned."""
    from rm_ray.train.collectives import (
        any_rank,
        gather_objects,
        merge_disjoint,
        split_votes,
        sum_counts,
        sum_over_ranks,
        sum_with_votes,
    )

    summed = torch.tensor([1.0, 10.0 * rank])
    sum_over_ranks(summed)
    counts = np.array([1, rank, 2**40], dtype=np.int64)
    votes = (False, rank == 1, True)
    sums = torch.tensor([0.1, 2.0**53, rank], dtype=torch.float64)
    together = sum_with_votes(sums, votes)
    mine = np.full((2, 3), np.nan, dtype=np.float32)
    mine[rank, : 2 - rank] = [[0.0, 0.1], [-3.5, np.nan]][rank][: 2 - rank]
    found = {
        "gathered": gather_objects({"rank": rank}),
        "summed": summed.tolist(),
        "counts": sum_counts(counts, summed.device).tolist(),
        "kept": counts.tolist(),
        "any": any_rank(votes, summed.device),
        "together": together.tolist(),
        "sums": sums.tolist(),
        "merged": merge_disjoint(mine, summed.device),
        "own": mine,
        "split": split_votes(together.tolist(), len(votes)),
    }
    torch.save(found, folder / f"{rank}.pt")
