"""Where the package's log lines go in a process that a user looks at."""

from __future__ import annotations

import io
import logging
import sys


def log_to_stdout() -> None:
    """Show what the package logs, a line each, and of other packages only warnings.

    What a terminal has no letters for is shown as Python writes it, as in ``gr\\xf6\\xdfe``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("rm_ray")
    package.handlers[:] = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False
    # Said whenever transformers writes a model on a machine without a GPU.
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: "Setting accelerator to CPU" not in record.getMessage()
    )
