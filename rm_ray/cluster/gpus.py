"""The GPUs of a machine: what their driver says, and what PyTorch needs of it."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

DRIVERS = {11: "450.80", 12: "525.60", 13: "580.65"}
"""Oldest Linux driver for each CUDA (docs.nvidia.com/cuda/cuda-toolkit-release-notes, table 2)."""

INSTALL_CUDA = "install the PyTorch of requirements.txt there, from an index with CUDA"

QUERY = "name,memory.total,driver_version,compute_cap"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its driver describes it."""

    name: str
    memory: int | None
    """Bytes; none where the driver does not tell."""
    driver: str
    capability: float
    """Compute capability, as in 8.0."""


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Ask the driver about all GPUs of this machine; return them, or why it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except FileNotFoundError:
        return (), "there is no nvidia-smi: the driver is not installed, or not in the container"
    except subprocess.SubprocessError as error:
        return (), f"nvidia-smi fails: {error}"
    return tuple(parse_gpu(line) for line in done.stdout.splitlines() if line.strip()), ""


def parse_gpu(line: str) -> Gpu:
    """Read a line of nvidia-smi's answer; memory is in MiB there, where the driver tells it."""
    name, memory, driver, capability = (cell.strip() for cell in line.split(","))
    size = int(memory) * 2**20 if memory.isdigit() else None
    return Gpu(name=name, memory=size, driver=driver, capability=float(capability))


def find_cuda() -> str | None:
    """Return the CUDA that PyTorch was built for, without the seconds that its import takes."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    told = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "version.py"))
    cuda: str | None = told.get("cuda")
    return cuda


def find_needed_driver(driver: str, cuda: str | None) -> str | None:
    """Return the driver that a CUDA needs, if this one is older."""
    needed = DRIVERS.get(int(cuda.split(".")[0])) if cuda else None
    return needed if needed and _parts(driver) < _parts(needed) else None


def _parts(version: str) -> list[int]:
    """Return the first two parts of a driver's version, of which 580.105 is newer than 580.65."""
    return [int(part) for part in version.split(".")[:2]]


def explain_no_cuda(name: str, cuda: str | None, gpus: Sequence[Gpu], error: str) -> str:
    """Say why PyTorch has no GPU on a machine that has some by Ray's count, and what to do."""
    trains = f"a worker on {name} is to train on a GPU, but "
    if cuda is None:
        return f"{trains}PyTorch is built without CUDA; {INSTALL_CUDA}"
    if error or not gpus:
        found = error or "nvidia-smi lists none"
        return f"{trains}{found}; mend the driver on that machine, or give its container the GPUs"
    driver = gpus[0].driver
    if needed := find_needed_driver(driver, cuda):
        return (
            f"{trains}its driver is {driver}, and PyTorch's CUDA {cuda} needs {needed} or newer; "
            "install that on every machine with GPUs"
        )
    return (
        f"{trains}CUDA {cuda} does not start with driver {driver}, which is new enough; see "
        "'nvidia-smi' and the kernel's log there, and what CUDA_VISIBLE_DEVICES holds"
    )
