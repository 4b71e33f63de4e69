"""The machines of the cluster, and the report that a task makes on each."""

from __future__ import annotations

import platform
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rm_ray.cluster.gpus import Gpu, find_cuda, find_gpus
from rm_ray.errors import InputError
from rm_ray.local_home import local_home
from rm_ray.model.compiler import find_missing
from rm_ray.storage import Storage

ANSWER_S = 120.0
"""Seconds that a machine may take to answer; a job's first task starts a process there."""

SHORT_ANSWER_S = 20.0
"""Seconds to answer right before training, whose workers make their own checks."""

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "ray", "numpy")
"""Packages that must have the same version on all machines."""

KIND = "accelerator_type:"
"""Prefix of the Ray resource that names a machine's GPU kind."""

DRIVER_FILE = "driver"
"""File that the driver writes and all machines read."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine as Ray sees it."""

    node_id: str
    name: str
    resources: Mapping[str, float]

    @property
    def num_cpus(self) -> int:
        """CPUs that Ray schedules."""
        return int(self.resources.get("CPU", 0))

    @property
    def num_gpus(self) -> int:
        """GPUs that Ray schedules."""
        return int(self.resources.get("GPU", 0))

    @property
    def gpu_kind(self) -> str | None:
        """Ray's name for its GPUs, such as 'H100'; None if unnamed."""
        return next((name[len(KIND) :] for name in self.resources if name.startswith(KIND)), None)

    @property
    def memory(self) -> int:
        """Bytes of memory that Ray schedules, the object store included."""
        names = ("memory", "object_store_memory")
        return int(sum(self.resources.get(name, 0) for name in names))

    def places(self, *, cpus: int, use_gpu: bool) -> int:
        """Return how many workers fit on this machine by CPUs and GPUs."""
        places = self.num_cpus // cpus
        return min(places, self.num_gpus) if use_gpu else places


def list_machines() -> list[Machine]:
    """Return the live machines."""
    return [
        Machine(node_id=node["NodeID"], name=node["NodeName"], resources=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


@dataclass(frozen=True, kw_only=True)
class MachineProbe:
    """What to find out on every machine."""

    storage: Storage
    token: str
    """Name of a folder in the storage; its ``DRIVER_FILE`` contains this name."""
    node_id: str = ""
    paths: tuple[str, ...] = ()
    """Files and folders that every machine needs."""
    has_gpus: bool = False

    def on(self, machine: Machine) -> MachineProbe:
        """Return the probe of one machine."""
        return replace(self, node_id=machine.node_id, has_gpus=machine.num_gpus > 0)


@dataclass(frozen=True, kw_only=True)
class MachineReport:
    """Findings of a task on one machine."""

    name: str = ""
    error: str = ""
    """Why the report is missing; empty if it is not."""
    storage_error: str = ""
    """Why the machine could not write or read the storage; empty if it could."""
    staging: str = ""
    """Folder that checkpoints are first written to."""
    staging_free: int = 0
    """Free bytes in ``staging``."""
    staging_error: str = ""
    missing_paths: tuple[str, ...] = ()
    software: Mapping[str, str] = field(default_factory=dict)
    """Version of each package."""
    cuda: str | None = None
    """CUDA version that PyTorch was built for; None if built without."""
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""
    missing_compiler: str = ""
    """What Triton lacks on a machine with GPUs; empty if nothing."""


def probe_machines(machines: Sequence[Machine], probe: MachineProbe) -> list[MachineReport]:
    """Return each machine's report, made by a task that claims no CPU or GPU."""
    task = ray.remote(num_cpus=0, max_retries=0)(make_report)
    answers = [task.options(**_on_node(machine)).remote(probe.on(machine)) for machine in machines]
    return _collect_all(answers, machines, timeout_s=ANSWER_S)


def ask_gpus(machines: Sequence[Machine]) -> list[MachineReport]:
    """Return the GPU reports of all machines that answer.

    Training starts right after, so this does not wait for slow machines.
    """
    if not machines:
        return []
    task = ray.remote(num_cpus=0, max_retries=0)(report_gpus)
    answers = [task.options(**_on_node(machine)).remote() for machine in machines]
    reports = _collect_all(answers, machines, timeout_s=SHORT_ANSWER_S)
    return [report for report in reports if not report.error]


def _on_node(machine: Machine) -> dict[str, Any]:
    """Return the Ray task options that pin a task to a machine."""
    strategy = NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
    return {"scheduling_strategy": strategy}


def _collect_all(
    answers: Sequence[ray.ObjectRef], machines: Sequence[Machine], *, timeout_s: float
) -> list[MachineReport]:
    """Return the reports in order; one that does not arrive in time is replaced by an error."""
    ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s)
    return [_collect(answer, machine) for answer, machine in zip(answers, machines, strict=True)]


def _collect(answer: ray.ObjectRef, machine: Machine) -> MachineReport:
    try:
        report: MachineReport = ray.get(answer, timeout=0)
        return report
    except ray.exceptions.GetTimeoutError:
        return MachineReport(name=machine.name, error=f"no answer in {ANSWER_S:.0f} s")
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return MachineReport(name=machine.name, error=reason[-1])


def report_gpus() -> MachineReport:
    """Report on this machine's GPUs and compiler."""
    gpus, gpu_error = find_gpus()
    return MachineReport(
        name=socket.gethostname(),
        cuda=find_cuda(),
        gpus=gpus,
        gpu_error=gpu_error,
        missing_compiler=find_missing(),
    )


def make_report(probe: MachineProbe) -> MachineReport:
    """Report on this machine: storage, disk, files, software and GPUs."""
    staging, staging_free, staging_error = "", 0, ""
    try:
        staging = str(local_home())
        staging_free = shutil.disk_usage(staging).free
    except (InputError, OSError) as error:
        staging_error = str(error)
    gpus, gpu_error = find_gpus() if probe.has_gpus else ((), "")
    return MachineReport(
        name=socket.gethostname(),
        storage_error=_try_storage(probe),
        staging=staging,
        staging_free=staging_free,
        staging_error=staging_error,
        missing_paths=tuple(path for path in probe.paths if not Path(path).exists()),
        software=find_software(),
        cuda=find_cuda(),
        gpus=gpus,
        gpu_error=gpu_error,
        missing_compiler=find_missing() if probe.has_gpus else "",
    )


def _try_storage(probe: MachineProbe) -> str:
    """Read the driver's file and write one in reply; return what went wrong, empty if nothing."""
    folder = probe.storage.folder(probe.token)
    try:
        if not folder.exists(DRIVER_FILE):
            return "the driver's file is missing: this is not the same folder"
        if folder.read_text(DRIVER_FILE) != probe.token:
            return "the driver's file reads back differently"
        folder.write_text(probe.node_id, probe.node_id)
    except OSError as error:
        return str(error)
    return ""


def find_software() -> dict[str, str]:
    """Return the versions of Python and of ``PACKAGES``."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
