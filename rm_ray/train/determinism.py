"""Kernels that add in a fixed order, so that a run can be repeated bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rm_ray.errors import InputError

KERNELS = {
    # cuBLAS sums in the same order only with workspaces of fixed sizes, which it reads once.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # The flash_attn package, which transformers calls for padded pairs.
    "FLASH_ATTENTION_DETERMINISTIC": "1",
}


def ask_for_determinism() -> None:
    """Set what libraries read when they are first used: call it before anything is computed."""
    os.environ.update(KERNELS)


def compute_deterministically() -> None:
    """Have PyTorch take deterministic kernels, and raise where an operation has none.

    With it flash attention's backward pass adds up queries' gradients without atomics, efficient
    attention does not split keys, and ``index_add_`` sorts. Liger's norms, gates and rotations
    have no atomics. Memory is not filled: nothing here reads what it has not written.
    """
    import torch  # takes seconds, which a worker uses to read its first steps

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


@contextmanager
def refusing_operations() -> Iterator[None]:
    """Name the setting where an operation has no kernel that ``compute_deterministically`` allows.

    Raises:
        InputError: there is such an operation.
    """
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0].split(", but you set")[0]
        raise InputError(
            f"run.deterministic is true, but the model needs an operation that PyTorch cannot "
            f"repeat bit for bit ({reason}); set run.deterministic to false"
        ) from error
