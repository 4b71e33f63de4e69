"""What a figure was measured on."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def describe_machine() -> str:
    """Return processor, cores, versions and commit in one line."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    processor = names[0] if names else platform.machine()
    return (
        f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"torch {version('torch')}, ray {version('ray')}; commit {commit}"
    )
