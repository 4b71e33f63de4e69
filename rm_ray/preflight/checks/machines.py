"""Checks of the machines: resources, software, GPUs, compilers and reachable files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_ray.cluster.gpus import INSTALL_CUDA, find_needed_driver
from rm_ray.config.sections.data import BUILTIN
from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.model.compiler import INSTALL
from rm_ray.preflight.checks.storage import check_storage, list_answers, open_exchange
from rm_ray.preflight.checks.verdict import Verdict, fail, ok, warn
from rm_ray.preflight.checks.wording import count, list_first
from rm_ray.preflight.machines import (
    Machine,
    MachineProbe,
    MachineReport,
    find_software,
    probe_machines,
)
from rm_ray.storage import Storage

AMPERE = 8.0
"""Lowest compute capability with bfloat16 and flash attention."""


@dataclass(frozen=True, kw_only=True)
class MachineFindings:
    """The verdicts on all machines, and the reports of those that answered."""

    verdicts: tuple[Verdict, ...]
    reports: tuple[MachineReport, ...] = ()
    is_storage_writable: bool = True
    """Whether the driver could write to the storage; if not, machines are not probed."""


def check_machines(
    machines: Sequence[Machine], storage: Storage, model: ModelConfig, *, use_gpu: bool
) -> MachineFindings:
    """Get a report from every machine and check it."""
    try:
        with open_exchange(storage) as token:
            probe = MachineProbe(storage=storage, token=token, paths=list_paths(model))
            reports = probe_machines(machines, probe)
            answers = list_answers(storage, token)
    except InputError as error:
        verdict = fail(
            "storage",
            str(error),
            "set run.storage_path to a folder or URI that this user can write",
        )
        return MachineFindings(verdicts=(verdict,), is_storage_writable=False)
    verdicts: list[Verdict | None] = [check_answers(reports)]
    if reports := [report for report in reports if not report.error]:
        verdicts += [
            check_software(reports, find_software()),
            check_gpus(reports, use_gpu=use_gpu, dtype=model.dtype),
            check_compiler(reports, use_gpu=use_gpu, liger=model.liger),
            check_storage(reports, answers, storage),
            check_paths(reports),
        ]
    found = tuple(verdict for verdict in verdicts if verdict is not None)
    return MachineFindings(verdicts=found, reports=tuple(reports))


def list_paths(model: ModelConfig) -> tuple[str, ...]:
    """Return the local files and folders that workers read."""
    names = (model.name_or_path, model.tokenizer or BUILTIN)
    paths = [Path(name).expanduser().resolve() for name in names if name != BUILTIN]
    return tuple(str(path) for path in paths if path.exists())


def check_cluster(
    machines: Sequence[Machine], workers: str, refusal: str, *, is_elsewhere: bool
) -> Verdict:
    """Check that the cluster has room for the workers; ``refusal`` is why not, empty if it has.

    ``is_elsewhere`` means that another cluster will train.
    """
    gpus, cpus = sum(m.num_gpus for m in machines), sum(m.num_cpus for m in machines)
    kinds = sorted({m.gpu_kind for m in machines if m.gpu_kind})
    kind = f" ({', '.join(kinds)})" if kinds else ""
    has = f"{count(len(machines), 'machine')}, {count(cpus, 'CPU')}, {count(gpus, 'GPU')}{kind}"
    if is_elsewhere:
        found = f"{has}: not the cluster of this run, which has {workers}"
        return warn("cluster", found, "check again on it")
    if not refusal:
        return ok("cluster", f"{has}; room for {workers}")
    return fail("cluster", refusal, "see 'ray status'; for another cluster, set --gpu_memory_gb")


def check_answers(reports: Sequence[MachineReport]) -> Verdict:
    """Check that a task could run on every machine."""
    silent = [f"{report.name}: {report.error}" for report in reports if report.error]
    if any("No module named 'rm_ray'" in reason for reason in silent):
        remedy = "start it in the project's folder, or with 'ray job submit --working-dir .'"
        return fail("machines", list_first(silent), remedy)
    if silent:
        remedy = "check the machine, or remove it from the cluster"
        return fail("machines", list_first(silent), remedy)
    return ok("machines", f"{count(len(reports), 'machine')} answered")


def check_software(reports: Sequence[MachineReport], here: Mapping[str, str]) -> Verdict:
    """Check that every machine has the same package versions as this one."""
    different = [
        f"{report.name} has {name} {report.software.get(name, 'missing')} instead of {version}"
        for report in reports
        for name, version in here.items()
        if report.software.get(name) != version
    ]
    if different:
        remedy = "install the same requirements.txt on every machine"
        return fail("software", list_first(different), remedy)
    return ok("software", ", ".join(f"{name} {version}" for name, version in here.items()))


def check_gpus(reports: Sequence[MachineReport], *, use_gpu: bool, dtype: str) -> Verdict:
    """Check that the GPUs are alike and their drivers new enough for PyTorch."""
    if not use_gpu:
        return ok("GPUs", "not used: workers train on CPUs")
    with_gpus = [report for report in reports if report.gpus or report.gpu_error]
    if not with_gpus:
        return warn("GPUs", "none in this cluster", "check again on the cluster of this run")
    if verdict := _check_drivers(with_gpus):
        return verdict
    gpus = [gpu for report in with_gpus for gpu in report.gpus]
    kinds = sorted({f"{gpu.name}, {_memory(gpu.memory)}" for gpu in gpus})
    drivers = sorted({gpu.driver for gpu in gpus})
    found = f"{len(gpus)} x {' and '.join(kinds)}; driver {', '.join(drivers)}"
    if dtype == "bfloat16" and min(gpu.capability for gpu in gpus) < AMPERE:
        return warn("GPUs", f"{found}: without bfloat16 in hardware", "use Ampere or newer GPUs")
    if len(kinds) > 1:
        return warn(
            "GPUs", found, "the slowest GPU sets the pace, and the smallest must fit its share"
        )
    return ok("GPUs", found)


def _check_drivers(with_gpus: Sequence[MachineReport]) -> Verdict | None:
    """Return a failure if drivers or PyTorch's CUDA build are unsuitable; otherwise None."""
    broken = [f"{report.name}: {report.gpu_error}" for report in with_gpus if report.gpu_error]
    if broken:
        return fail("GPUs", list_first(broken), "fix the driver on these machines")
    no_cuda = [report.name for report in with_gpus if report.cuda is None]
    if no_cuda:
        found = f"PyTorch is built without CUDA on {list_first(no_cuda)}"
        return fail("GPUs", found, INSTALL_CUDA)
    old = [
        f"{report.name} has driver {gpu.driver}, but PyTorch's CUDA {report.cuda} needs {least}"
        for report in with_gpus
        for gpu in report.gpus[:1]
        if (least := find_needed_driver(gpu.driver, report.cuda))
    ]
    if old:
        return fail("GPUs", list_first(old), "install a newer driver on these machines")
    return None


def _memory(size: int | None) -> str:
    return "memory unknown" if size is None else f"{size / GIGABYTE:.0f} GB"


def check_compiler(
    reports: Sequence[MachineReport], *, use_gpu: bool, liger: str
) -> Verdict | None:
    """Check that Triton can compile Liger's kernels on the GPU machines; None if Liger is off.

    With ``liger`` 'auto', training falls back to other kernels, so a failure is only a warning.
    """
    if not use_gpu or liger == "off" or not any(r.gpus or r.gpu_error for r in reports):
        return None
    without = [f"{r.name} lacks {r.missing_compiler}" for r in reports if r.missing_compiler]
    if not without:
        return ok("compiler", "a C compiler and Python's headers for Liger's kernels")
    judge = fail if liger == "on" else warn
    return judge("compiler", f"{list_first(without)}: Liger's kernels need it", INSTALL)


def check_paths(reports: Sequence[MachineReport]) -> Verdict | None:
    """Check that every machine has the files that the settings name; None if so."""
    missing = [
        f"{report.name} has no {list_first(report.missing_paths)}"
        for report in reports
        if report.missing_paths
    ]
    if not missing:
        return None
    return fail("files", list_first(missing), "put them on storage that every machine can reach")
