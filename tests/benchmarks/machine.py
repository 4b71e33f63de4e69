"""What a figure was measured on."""

import os
import platform
import shutil
import subprocess
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "liger-kernel", "trl", "ray")

COMMIT = "RM_RAY_COMMIT"
"""The environment's variable, and the file at the project's root, that names the commit of a copy
without its repository."""


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


def describe_gpu() -> str:
    """Return the GPU, its memory and driver, CUDA, and what Triton needs to compile."""
    import torch  # not in processes that only wait for others
    from triton import __version__ as triton

    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"
    except FileNotFoundError:
        driver = "unknown"
    if not torch.cuda.is_available():
        return f"no GPU that PyTorch sees (driver {driver})"
    gpu = torch.cuda.get_device_properties(0)
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return (
        f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, driver {driver}, CUDA "
        f"{torch.version.cuda}, Triton {triton}; C compiler {shutil.which('cc') or 'missing'}, "
        f"Python.h {'there' if header.exists() else 'missing'}"
    )


def commit() -> str:
    """Return the commit that is measured; a copy without its repository must be told it."""
    file = ROOT / COMMIT
    told = os.environ.get(COMMIT) or (file.read_text().strip() if file.exists() else "")
    if told:
        return told
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"
