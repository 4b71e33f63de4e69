"""GPUs of this machine as nvidia-smi reports them, and the driver that PyTorch needs."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

DRIVERS = {11: "450.80", 12: "525.60", 13: "580.65"}
"""Oldest Linux driver by CUDA (docs.nvidia.com/cuda/cuda-toolkit-release-notes, table 2)."""

INSTALL_CUDA = "install the PyTorch from requirements.txt there, from an index with CUDA builds"

QUERY = "name,memory.total,driver_version,compute_cap"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its driver describes it."""

    name: str
    memory: int | None
    """Bytes; None if the driver does not report it."""
    driver: str
    capability: float
    """Compute capability, for example 8.0."""


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Query nvidia-smi; return this machine's GPUs, and an error message if the query fails."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except FileNotFoundError:
        return (), "nvidia-smi is missing: the driver is not installed, or not in the container"
    except subprocess.SubprocessError as error:
        return (), f"nvidia-smi failed: {error}"
    return tuple(parse_gpu(line) for line in done.stdout.splitlines() if line.strip()), ""


def parse_gpu(line: str) -> Gpu:
    """Parse a line of nvidia-smi's output, which gives memory in MiB if the driver reports it."""
    name, memory, driver, capability = (cell.strip() for cell in line.split(","))
    size = int(memory) * 2**20 if memory.isdigit() else None
    return Gpu(name=name, memory=size, driver=driver, capability=float(capability))


def find_cuda() -> str | None:
    """Return the CUDA version of the PyTorch build, without the cost of importing torch."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    version = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "version.py"))
    cuda: str | None = version.get("cuda")
    return cuda


def find_needed_driver(driver: str, cuda: str | None) -> str | None:
    """Return the oldest driver that a CUDA version supports; None if this one is new enough."""
    needed = DRIVERS.get(int(cuda.split(".")[0])) if cuda else None
    return needed if needed and _parts(driver) < _parts(needed) else None


def _parts(version: str) -> list[int]:
    """Return the first two parts of a driver version, as integers: 580.105 is newer than 580.65."""
    return [int(part) for part in version.split(".")[:2]]


def explain_no_cuda(name: str, cuda: str | None, gpus: Sequence[Gpu], error: str) -> str:
    """Return why PyTorch sees no GPU on a machine where Ray counts some, and what to do."""
    needs = f"a worker on {name} needs a GPU, but "
    if cuda is None:
        return f"{needs}PyTorch is built without CUDA; {INSTALL_CUDA}"
    if error or not gpus:
        found = error or "nvidia-smi lists none"
        return f"{needs}{found}; fix that machine's driver, or expose its GPUs to the container"
    driver = gpus[0].driver
    if needed := find_needed_driver(driver, cuda):
        return (
            f"{needs}its driver is {driver}, and PyTorch's CUDA {cuda} needs {needed} or newer; "
            "upgrade it on every machine with GPUs"
        )
    return (
        f"{needs}CUDA {cuda} does not start with driver {driver}, which is new enough; check "
        "nvidia-smi, the kernel log and CUDA_VISIBLE_DEVICES there"
    )
