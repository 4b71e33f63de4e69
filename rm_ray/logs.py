"""Terminal logging of a command."""

from __future__ import annotations

import io
import logging
import sys


def log_to_stdout() -> None:
    """Log this package's records to stdout, one line each; other packages only warn.

    Characters that the terminal cannot encode are escaped, as in ``gr\\xf6\\xdfe``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("rm_ray")
    package.handlers[:] = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False
    # DeepSpeed logs this whenever transformers saves a model on a machine without a GPU.
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: "Setting accelerator to CPU" not in record.getMessage()
    )
    # bitsandbytes, which peft imports, misses a kernel that only its own evaluation on CPUs uses.
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
        lambda record: "gemm_4bit_forward" not in record.getMessage()
    )


def log_to_stderr() -> None:
    """Reserve stdout for a document and log to stderr; call ``log_to_stdout`` first."""
    (handler,) = logging.getLogger("rm_ray").handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(sys.stderr)
