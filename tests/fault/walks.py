"""A walk over the pages: commands, one after another, on a machine of its own.

The machine is a namespace of Linux with its own network, processes and ``/tmp/ray``, so that ports
are free, and ``ray stop`` stops no other Ray. The Hub is a loopback one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_server import TOKEN
from servers import without_ray

from jobs import ROOT

TOOLS = ("ip", "unshare")

MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

MARKS = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        bool(MISSING) or os.geteuid() != 0,
        reason=f"needs root, and of util-linux and iproute2: {', '.join(MISSING) or 'nothing'}",
    ),
]

BEGIN = f"""
set -euo pipefail
mkdir -p /tmp/ray "$HOME/ray"
mount --bind "$HOME/ray" /tmp/ray
ip link set lo up
{sys.executable} tests/hub_server.py "$HOME/hub" 8000 &
set -x
"""


@contextmanager
def walking(scripts: Iterable[str], files: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Give scripts to a shell in a clone; yield the walker's home and what was printed.

    ``files`` are texts that are in the home before. ``hf_...`` stands for the token of the Hub.
    """
    with tempfile.TemporaryDirectory(prefix="walk-") as folder:
        home = Path(folder)
        _clone_to(home / "clone")
        for name, text in files.items():
            (home / name).write_text(text)
        hub = {"HF_ENDPOINT": "http://127.0.0.1:8000", "HF_HUB_DISABLE_XET": "1"}
        apart = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        script = "\n".join([BEGIN, *scripts]).replace("hf_...", TOKEN)
        done = subprocess.run(
            [*apart, "bash", "-c", script],
            cwd=home / "clone",
            env=without_ray() | hub | {"HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout)
        assert done.returncode == 0
        yield home, done.stdout


def _clone_to(clone: Path) -> None:
    """Copy the files of the repository as they are, with this environment."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for file in files:
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, clone / file)
    (clone / ".venv").symlink_to(ROOT / ".venv")
