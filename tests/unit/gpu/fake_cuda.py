"""Fake CUDA tensors on a machine without a GPU, and a watch over what is done with them.

A fake tensor has shape, dtype and device but no values, so operators check devices and dtypes and
compute nothing. ``load_stand_in`` gives a CPU build of PyTorch what it lacks for them, and comes
before anything that imports torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def load_stand_in(library: Path) -> None:
    """Load the compiled ``stand_in.cpp``, whose registrations PyTorch finds when it starts."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    libraries = Path(spec.submodule_search_locations[0]) / "lib"
    for path in (libraries / "libc10.so", libraries / "libtorch_cpu.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    # Accelerate takes it from there, as it does under Ray; no CUDA runtime is there to be asked.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cuda:0"
    import torch

    # torch.cuda.is_available stays false, else fake tensors would make real ones on the GPU.
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_: True  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment]


def make_watch(answer: float) -> Any:
    """Return a dispatch mode that keeps what a GPU would be waited for; see ``_Watch``."""
    import numpy as np
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from varlen_operator import HALF, check_like_flash

    # Under inference mode they arrive by the names of their callers.
    values = {"_local_scalar_dense", "item", "is_nonzero"}
    copying = {"_to_copy", "to", "cpu", "cuda"}
    reading = {"nonzero", "masked_select", "equal", "unique", "_unique2", "unique_dim",
               "unique_consecutive", "repeat_interleave", "bincount"}  # fmt: skip
    indexing = {"index", "index_put", "index_put_", "_index_put_impl_"}

    class _Watch(TorchDispatchMode):
        """Counts reads of values, copies between devices and casts, by phase.

        Every value that is read is ``answer``, or true.
        """

        def __init__(self) -> None:
            super().__init__()
            self.phase = "around"
            self.seen: Counter[str] = Counter()
            self.casts: Counter[str] = Counter()
            self.operators: Counter[str] = Counter()
            self.where: dict[str, str] = {}

        @contextmanager
        def during(self, phase: str) -> Iterator[None]:
            """Name what happens inside."""
            before, self.phase = self.phase, phase
            yield
            self.phase = before

        def keep(self, what: str) -> None:
            """Count something, with the first place where it came from."""
            key = f"{self.phase}: {what}"
            self.seen[key] += 1
            if self.seen[key] == 1:
                self.where[key] = "".join(traceback.format_stack(limit=12)[:-2])

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            kwargs = kwargs or {}
            name = func.__name__.split(".")[0]
            self.operators[f"{self.phase}: {name}"] += 1
            if name in values:
                (tensor,) = args
                self.keep(f"read from {tensor.device.type}")
                return True if tensor.dtype == torch.bool or name == "is_nonzero" else answer
            if name in reading:
                self.keep(name)
            if name in indexing and any(_is_mask(index) for index in args[1] or ()):
                self.keep("index by a mask")
            if name == "_varlen_attn":
                query, key, value, *starts = args[:5]
                check_like_flash(query, key, value)
                if query.dtype not in HALF or {start.dtype for start in starts} != {torch.int32}:
                    self.keep(f"attention of {query.dtype} from starts of {starts[0].dtype}")
            found = func(*args, **kwargs)
            if name == "copy_" or name in copying:
                self._watch_copy(args[1] if name == "copy_" else args[0], found)
            if self.phase in ("forward", "backward"):
                tensors = [t for t in tree_leaves((args, kwargs, found))
                           if isinstance(t, torch.Tensor)]  # fmt: skip
                if any(tensor.device.type != "cuda" for tensor in tensors):
                    self.keep(f"tensor on the CPU in {name}")
                if not all(isinstance(tensor, FakeTensor) for tensor in tensors):
                    self.keep(f"tensor that is no fake in {name}")
            return found

        def _watch_copy(self, source: torch.Tensor, found: torch.Tensor) -> None:
            if source.device.type != found.device.type:
                self.keep(f"copy from {source.device.type} to {found.device.type}")
            if source.dtype != found.dtype:
                types = f"{str(source.dtype)[6:]} to {str(found.dtype)[6:]}"
                self.casts[f"{self.phase}: {types}"] += 1

    def _is_mask(index: Any) -> bool:
        return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)

    def numpy(self: torch.Tensor) -> Any:
        if self.device.type != "cpu":
            raise TypeError("can't convert a CUDA tensor to numpy; copy it to the CPU first")
        return np.full(tuple(self.shape), answer, dtype=str(self.dtype)[6:])

    FakeTensor.numpy = numpy  # type: ignore[method-assign]
    return _Watch()
