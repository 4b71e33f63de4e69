"""Liger's Triton kernels on CPUs, by Triton's interpreter; imported before anything of Triton's.

Three things of Triton 3.9's interpreter are mended, without which these kernels do not run:

- It has no conversion for Python floats that are given to a kernel as they are (an epsilon).
- ``rsqrt`` of CUDA's mathematical library has no implementation.
- Nor has its ``tanh``.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # Triton asks when a kernel is defined

from collections import Counter
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

launched: Counter[str] = Counter()
"""How often each kernel was launched in this process."""


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    """Return 1 / sqrt(x)."""
    return 1.0 / tl.sqrt(x)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """Return tanh(x) by the logistic function."""
    return 2 * tl.sigmoid(2 * x) - 1


def mend_interpreter() -> None:
    """Mend what Liger's kernels need, and count launches from here on."""
    from liger_kernel.ops import geglu, rms_norm

    convert, run_folder = interpreter._implicit_cvt, interpreter.InterpretedFunction.run

    def convert_floats_too(argument: Any) -> Any:
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(argument)

    def count(function: Any, *arguments: Any, **options: Any) -> Any:
        launched[function.__name__] += 1
        return run_folder(function, *arguments, **options)

    interpreter._implicit_cvt = convert_floats_too
    interpreter.InterpretedFunction.run = count
    rms_norm.rsqrt = rsqrt
    geglu.tanh = tanh
