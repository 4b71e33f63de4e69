"""A command that does not outlive its parent: ``python -m rm_ray.sweep.bound PARENT COMMAND ...``.

This process becomes the command after asking Linux to kill it once the parent, given by its id, is
gone. A sweep that is killed then leaves no run at work, which the next command would have to wait
for. The run's own attempt ends with its supervisor.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of prctl(2); it survives execve."""


def main(arguments: list[str]) -> None:
    """Become the command; exit if the parent is gone already."""
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
