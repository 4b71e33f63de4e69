"""What a figure was measured on."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("torch", "transformers", "trl", "ray")


def describe_machine() -> str:
    """Return processor, cores, memory, versions and commit in one line."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := version_of(name)))
    return (
        f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB; Python "
        f"{platform.python_version()}, {versions}; commit {commit()}"
    )


def version_of(package: str) -> str | None:
    """Return the version of a package, or none where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Return the commit that is measured; a copy without its repository has none to tell."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"
