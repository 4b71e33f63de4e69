"""The machines of the cluster, and what a task on each of them finds out there."""

from __future__ import annotations

import platform
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rm_ray.cluster.gpus import Gpu, find_cuda, find_gpus
from rm_ray.errors import InputError
from rm_ray.model.compiler import find_missing
from rm_ray.storage import Storage, local_home

ANSWER_S = 120.0
"""How long a machine may take to answer; the first task of a job starts a process there."""

SHORT_ANSWER_S = 20.0
"""The same before a training, which has its own checks in every worker."""

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "ray", "numpy")
"""Packages that all machines must have alike."""

KIND = "accelerator_type:"
"""What Ray's resource for the kind of a machine's GPUs begins with."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine as Ray knows it."""

    node_id: str
    name: str
    resources: Mapping[str, float]

    @property
    def num_cpus(self) -> int:
        """CPUs that Ray counts with."""
        return int(self.resources.get("CPU", 0))

    @property
    def num_gpus(self) -> int:
        """GPUs that Ray counts with."""
        return int(self.resources.get("GPU", 0))

    @property
    def gpu_kind(self) -> str | None:
        """Ray's name of its GPUs, as in 'H100'."""
        return next((name[len(KIND) :] for name in self.resources if name.startswith(KIND)), None)

    @property
    def memory(self) -> int:
        """Bytes of its memory that Ray counts with."""
        names = ("memory", "object_store_memory")
        return int(sum(self.resources.get(name, 0) for name in names))

    def places(self, *, cpus: int, use_gpu: bool) -> int:
        """Return for how many workers it has room."""
        places = self.num_cpus // cpus
        return min(places, self.num_gpus) if use_gpu else places


def list_machines() -> list[Machine]:
    """Return the machines that are there."""
    return [
        Machine(node_id=node["NodeID"], name=node["NodeName"], resources=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


@dataclass(frozen=True, kw_only=True)
class MachineProbe:
    """What is to be found out on every machine."""

    storage: Storage
    token: str
    """The name of a folder in the storage, with a file 'driver' that holds this name."""
    node_id: str = ""
    paths: tuple[str, ...] = ()
    """Files and folders that every machine needs."""
    has_gpus: bool = False


@dataclass(frozen=True, kw_only=True)
class MachineReport:
    """What a machine has, as a task on it found."""

    name: str = ""
    error: str = ""
    """Why nothing was found out."""
    storage_error: str = ""
    """Why the storage could not be written or read there."""
    staging: str = ""
    """The folder that checkpoints are written to first."""
    staging_free: int = 0
    staging_error: str = ""
    missing_paths: tuple[str, ...] = ()
    software: Mapping[str, str] = field(default_factory=dict)
    cuda: str | None = None
    """The CUDA that its PyTorch was built for."""
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""
    missing_compiler: str = ""
    """What Triton misses on a machine with GPUs."""


def probe_machines(machines: Sequence[Machine], question: MachineProbe) -> list[MachineReport]:
    """Return what a task on each machine finds; it claims no CPU and no GPU."""
    task = ray.remote(num_cpus=0, max_retries=0)(make_report)
    answers = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
        ).remote(_on(question, machine))
        for machine in machines
    ]
    ray.wait(answers, num_returns=len(answers), timeout=ANSWER_S)
    return [_collect(answer, machine) for answer, machine in zip(answers, machines, strict=True)]


def ask_gpus(machines: Sequence[Machine]) -> list[MachineReport]:
    """Return what a task on each machine finds of its GPUs; those that do not answer are left out.

    Training begins right after, so a machine that is slow is not waited for long.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(report_gpus)
    answers = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
        ).remote()
        for machine in machines
    ]
    if not answers:
        return []
    ray.wait(answers, num_returns=len(answers), timeout=SHORT_ANSWER_S)
    found = [_collect(answer, machine) for answer, machine in zip(answers, machines, strict=True)]
    return [reports for reports in found if not reports.error]


def report_gpus() -> MachineReport:
    """Look at this machine's GPUs, and at what compiles for them."""
    gpus, gpu_error = find_gpus()
    return MachineReport(
        name=socket.gethostname(),
        cuda=find_cuda(),
        gpus=gpus,
        gpu_error=gpu_error,
        missing_compiler=find_missing(),
    )


def _on(question: MachineProbe, machine: Machine) -> MachineProbe:
    return MachineProbe(
        storage=question.storage,
        token=question.token,
        node_id=machine.node_id,
        paths=question.paths,
        has_gpus=machine.num_gpus > 0,
    )


def _collect(answer: ray.ObjectRef, machine: Machine) -> MachineReport:
    try:
        reports: MachineReport = ray.get(answer, timeout=0)
        return reports
    except ray.exceptions.GetTimeoutError:
        return MachineReport(name=machine.name, error=f"no answer in {ANSWER_S:.0f} s")
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return MachineReport(name=machine.name, error=reason[-1])


def make_report(question: MachineProbe) -> MachineReport:
    """Look around on this machine."""
    staging, staging_free, staging_error = "", 0, ""
    try:
        staging = str(local_home())
        staging_free = shutil.disk_usage(staging).free
    except (InputError, OSError) as error:
        staging_error = str(error)
    gpus, gpu_error = find_gpus() if question.has_gpus else ((), "")
    return MachineReport(
        name=socket.gethostname(),
        storage_error=_try_storage(question),
        staging=staging,
        staging_free=staging_free,
        staging_error=staging_error,
        missing_paths=tuple(path for path in question.paths if not Path(path).exists()),
        software=find_software(),
        cuda=find_cuda(),
        gpus=gpus,
        gpu_error=gpu_error,
        missing_compiler=find_missing() if question.has_gpus else "",
    )


def _try_storage(question: MachineProbe) -> str:
    """Read what the driver wrote, and leave a file for it; return what went wrong."""
    folder = question.storage.folder(question.token)
    try:
        if not folder.exists("driver"):
            return "what the driver wrote is not there: it is not the same folder"
        if folder.read_text("driver") != question.token:
            return "what the driver wrote reads back differently"
        folder.write_text(question.node_id, question.node_id)
    except OSError as error:
        return str(error)
    return ""


def find_software() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
