"""The checkpoint file with the state of one rank's random number generators."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def rng_file(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rng-{rank:05d}.safetensors"


def write_rng_state(path: Path) -> None:
    """Write the generator states of the CPU and of every visible GPU."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    state = {"cpu": torch.get_rng_state(), **{f"cuda:{i}": one for i, one in enumerate(cuda)}}
    save_file(state, path)


def read_rng_state(path: Path) -> None:
    """Restore the CPU generator, and the GPU ones if the same number of GPUs is visible."""
    state = load_file(path)
    torch.set_rng_state(state.pop("cpu"))
    if torch.cuda.is_available() and len(state) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state[f"cuda:{i}"] for i in range(len(state))])
