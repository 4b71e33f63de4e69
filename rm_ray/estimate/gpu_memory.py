"""How much of a GPU's memory is left for tensors."""

GIGABYTE = 10**9

OUTSIDE = 2 * GIGABYTE
"""GPU memory beside PyTorch's tensors: the CUDA context, some 0.5 GB, and NCCL's buffers, from 0.5
to 1.6 GB for a communicator (github.com/NVIDIA/nccl, issues 864 and 964). Not measured here."""

FRAGMENTS = 0.05
"""Share of the rest that PyTorch's caching allocator may not be able to use. Not measured here."""

TOO_LOW = 0.08
"""Share by which an estimate may be too low; measured peaks on CPUs were up to 7.5% above it
(tests/README.md)."""


def usable(gpu_memory: int) -> int:
    """Return the bytes of a GPU that are left for tensors."""
    return int((gpu_memory - OUTSIDE) * (1 - FRAGMENTS) * (1 - TOO_LOW))
