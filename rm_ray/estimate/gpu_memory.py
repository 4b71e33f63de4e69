"""GPU memory available for tensors."""

GIGABYTE = 10**9

OUTSIDE = 2 * GIGABYTE
"""GPU memory outside PyTorch's allocator: the CUDA context, about 0.5 GB, and NCCL's buffers, 0.5
to 1.6 GB per communicator (github.com/NVIDIA/nccl, issues 864 and 964). Not measured."""

FRAGMENTS = 0.05
"""Share of the rest that PyTorch's caching allocator may lose to fragmentation. Not measured."""

TOO_LOW = 0.08
"""Share by which an estimate may be too low; peaks measured on CPUs were up to 7.5% higher
(tests/benchmarks/README.md)."""


def usable_memory(gpu_memory: int) -> int:
    """Return the bytes of a GPU available for tensors."""
    return int((gpu_memory - OUTSIDE) * (1 - FRAGMENTS) * (1 - TOO_LOW))
