"""Deterministic kernels, with which a run repeats bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rm_ray.errors import InputError

KERNELS = {
    # cuBLAS sums in a fixed order only with fixed workspace sizes.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Read by the flash_attn package, which transformers uses for padded pairs.
    "FLASH_ATTENTION_DETERMINISTIC": "1",
}


def ask_for_determinism() -> None:
    """Set the variables that libraries read once, on first use; call it before any computation."""
    os.environ.update(KERNELS)


def compute_deterministically() -> None:
    """Make PyTorch use deterministic kernels, and raise if an operation has none.

    Flash attention's backward pass then sums query gradients without atomics, efficient attention
    does not split keys, and ``index_add_`` sorts. Liger's norms, gates and rotations use no
    atomics. Uninitialized memory stays unfilled, since nothing here reads it.
    """
    import torch  # late: takes seconds, in which a worker reads its first steps

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


@contextmanager
def refusing_operations() -> Iterator[None]:
    """Turn PyTorch's error about a nondeterministic operation into one that names the setting.

    Raises:
        InputError: an operation has no deterministic kernel.
    """
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0].split(", but you set")[0]
        raise InputError(
            "run.deterministic is true, but the model needs an operation that PyTorch cannot "
            f"repeat bit for bit ({reason}). Set run.deterministic to false"
        ) from error
