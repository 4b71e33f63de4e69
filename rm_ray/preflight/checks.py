"""Each check a small function: what was found -> a verdict, and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from uuid import uuid4

from rm_ray.cluster.gpus import INSTALL_CUDA, find_needed_driver
from rm_ray.config.train_config import BUILTIN, CheckpointConfig, ModelConfig
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import GIGABYTE, usable
from rm_ray.estimate.memory import MemoryEstimate
from rm_ray.model.base_check import BaseModel
from rm_ray.model.compiler import INSTALL
from rm_ray.model.weight_files import list_some
from rm_ray.preflight.machines import Machine, MachineReport
from rm_ray.storage import Storage

Outcome = Literal["ok", "warning", "failed"]

AMPERE = 8.0
"""Compute capability from which bfloat16 and flash attention are there."""

AT_ONCE = 2
"""Checkpoints beside those that are kept: one that is copied, one that is about to be deleted."""

CHECKPOINT = 12
"""Bytes of a checkpoint for each parameter: its weight and AdamW's two moments, in float32."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check found."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""
    """What to do; empty where all is well."""


def passed(name: str, found: str) -> Verdict:
    """Return a verdict with which all is well."""
    return Verdict(name=name, outcome="ok", found=found)


def warn(name: str, found: str, remedy: str) -> Verdict:
    """Return a verdict with which training works, but perhaps not as it should."""
    return Verdict(name=name, outcome="warning", found=found, remedy=remedy)


def fail(name: str, found: str, remedy: str) -> Verdict:
    """Return a verdict with which training fails."""
    return Verdict(name=name, outcome="failed", found=found, remedy=remedy)


def elsewhere(verdict: Verdict) -> Verdict:
    """Return what is wrong as a warning, since what was looked at is not what the run will use."""
    if verdict.outcome == "ok":
        return verdict
    return replace(verdict, outcome="warning", remedy="check again on the cluster of this run")


def _list(names: Iterable[str], most: int = 4) -> str:
    known = list(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def count(number: int, what: str, ending: str = "s") -> str:
    """Write a number of things."""
    return f"{number:,} {what}{ending * (number != 1)}"


def check_cluster(
    machines: Sequence[Machine], fitted: str, refusal: str | None, *, is_elsewhere: bool
) -> Verdict:
    """Tell whether the cluster has what the workers need; ``refusal`` says why not.

    Where that ``is_elsewhere``, the cluster at hand is not the one that will train.
    """
    gpus, cpus = sum(m.num_gpus for m in machines), sum(m.num_cpus for m in machines)
    kinds = sorted({m.gpu_kind for m in machines if m.gpu_kind})
    kind = f" ({', '.join(kinds)})" if kinds else ""
    has = f"{count(len(machines), 'machine')}, {count(cpus, 'CPU')}, {count(gpus, 'GPU')}{kind}"
    if is_elsewhere:
        found = f"{has}: not the cluster of this run, which has {fitted}"
        return warn("cluster", found, "check again on it")
    if refusal is None:
        return passed("cluster", f"{has}; room for {fitted}")
    return fail("cluster", refusal, "see 'ray status'; or say what a GPU has with --gpu_memory_gb")


def check_answers(reports: Sequence[MachineReport]) -> Verdict:
    """Tell whether a task could run on every machine."""
    silent = [f"{f.name}: {f.error}" for f in reports if f.error]
    if any("No module named 'rm_ray'" in told for told in silent):
        remedy = "start it in the project's folder, or with 'ray job submit --working-dir .'"
        return fail("machines", _list(silent), remedy)
    if silent:
        return fail("machines", _list(silent), "look at the machine, or take it out of the cluster")
    return passed("machines", f"{count(len(reports), 'machine')} answered")


def check_software(reports: Sequence[MachineReport], here: Mapping[str, str]) -> Verdict:
    """Tell whether every machine has the same packages as this one."""
    other = [
        f"{f.name} has {name} {f.software.get(name, 'missing')} instead of {known}"
        for f in reports
        for name, known in here.items()
        if f.software.get(name) != known
    ]
    if other:
        return fail("software", _list(other), "install the same requirements.txt on every machine")
    return passed("software", ", ".join(f"{name} {known}" for name, known in here.items()))


def check_gpus(reports: Sequence[MachineReport], *, use_gpu: bool, dtype: str) -> Verdict:
    """Tell whether the GPUs are alike, and their driver new enough for PyTorch."""
    if not use_gpu:
        return passed("GPUs", "none are used: workers train on CPUs")
    with_gpus = [f for f in reports if f.gpus or f.gpu_error]
    broken = [f"{f.name}: {f.gpu_error}" for f in with_gpus if f.gpu_error]
    if broken:
        return fail("GPUs", _list(broken), "mend the driver on these machines")
    if not with_gpus:
        return warn("GPUs", "there are none to look at", "check again on the cluster of this run")
    no_cuda = [f.name for f in with_gpus if f.cuda is None]
    if no_cuda:
        return fail("GPUs", f"PyTorch is built without CUDA on {_list(no_cuda)}", INSTALL_CUDA)
    old = [
        f"{f.name} has driver {gpu.driver}, and PyTorch's CUDA {f.cuda} needs {least}"
        for f in with_gpus
        for gpu in f.gpus[:1]
        if (least := find_needed_driver(gpu.driver, f.cuda))
    ]
    if old:
        return fail("GPUs", _list(old), "install a newer driver on these machines")
    gpus = [gpu for f in with_gpus for gpu in f.gpus]
    kinds = sorted({f"{gpu.name}, {_memory(gpu.memory)}" for gpu in gpus})
    drivers = sorted({gpu.driver for gpu in gpus})
    found = f"{len(gpus)} x {' and '.join(kinds)}; driver {', '.join(drivers)}"
    if dtype == "bfloat16" and min(gpu.capability for gpu in gpus) < AMPERE:
        return warn("GPUs", f"{found}: without bfloat16 in hardware", "use GPUs from Ampere on")
    if len(kinds) > 1:
        return warn("GPUs", found, "the slowest sets the pace, and the smallest must hold its part")
    return passed("GPUs", found)


def _memory(size: int | None) -> str:
    return "memory unknown" if size is None else f"{size / GIGABYTE:.0f} GB"


def check_compiler(
    reports: Sequence[MachineReport], *, use_gpu: bool, liger: str
) -> Verdict | None:
    """Tell whether Triton can compile Liger's kernels where GPUs are; none where it need not."""
    without = [f"{f.name} lacks {f.missing_compiler}" for f in reports if f.missing_compiler]
    if not use_gpu or liger == "off" or not any(f.gpus or f.gpu_error for f in reports):
        return None
    if not without:
        return passed("compiler", "a C compiler and Python's headers for Liger's kernels")
    judge = fail if liger == "on" else warn
    return judge("compiler", f"{_list(without)}: Liger's kernels need it", INSTALL)


@contextmanager
def left_by_driver(storage: Storage) -> Iterator[str]:
    """Give the name of a folder in the storage with a file for every machine to read.

    Raises:
        InputError: it cannot be written.
    """
    storage.check_writable()
    token = f".preflight-{uuid4().hex}"
    storage.folder(token).write_text("driver", token)
    try:
        yield token
    finally:
        storage.delete(token)


def check_storage(
    reports: Sequence[MachineReport], written: Collection[str], storage: Storage
) -> Verdict:
    """Tell whether every machine read what the driver wrote, and the driver what each wrote.

    ``written`` are the files of machines that the driver found.
    """
    wrong = [f"{f.name}: {f.storage_error}" for f in reports if f.storage_error]
    if wrong:
        remedy = "run.storage_path must be one folder or URI that every machine may write"
        return fail("storage", _list(wrong), remedy)
    if len(written) < len(reports):
        found = f"the driver sees the files of {len(written)} of {len(reports)} machines"
        return fail("storage", found, "run.storage_path must be the same folder on every machine")
    where = f"{storage.path}, written and read back"
    return passed("storage", f"{where} on {count(len(reports), 'machine')}")


def check_disk(
    storage: Storage,
    checkpoint: CheckpointConfig,
    *,
    num_parameters: int,
    num_steps: int,
    num_there: int = 0,
) -> Verdict:
    """Tell whether the storage has room for the run's checkpoints and its model.

    ``num_there`` checkpoints of the run are there already.
    """
    taken = -(-num_steps // checkpoint.every_steps) if checkpoint.every_steps else 1
    kept = min(checkpoint.keep + AT_ONCE, taken)
    size = (kept * CHECKPOINT + 4) * num_parameters
    needed = size - min(kept, num_there) * CHECKPOINT * num_parameters
    what = f"{count(kept, 'checkpoint')} and the model take up to {_gigabytes(size)}"
    if num_there:
        what += f", of which {_gigabytes(size - needed)} are there"
    if not storage.is_local:
        return passed("disk", f"{what}; how much is free there cannot be told")
    free = shutil.disk_usage(_nearest(Path(storage.path))).free
    found = f"{what}; {_gigabytes(free)} are free at {storage.path}"
    if free < needed:
        return fail("disk", found, "free space, lower checkpoint.keep, or set run.storage_path")
    return passed("disk", found)


def _nearest(path: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def check_staging(reports: Sequence[MachineReport], *, num_parameters: int) -> Verdict:
    """Tell whether machines have room for the checkpoint that they write before it is copied.

    ``facts`` are those of machines that workers may get. How many each gets is not known, so it
    needs room for all of one.
    """
    wrong = [f"{f.name}: {f.staging_error}" for f in reports if f.staging_error]
    if wrong:
        return fail("staging", _list(wrong), "set TMPDIR to a folder of this user's")
    needed = (CHECKPOINT + 4) * num_parameters
    what = f"a checkpoint and the model take up to {_gigabytes(needed)}"
    small = [
        f"{f.name} has {_gigabytes(f.staging_free)} free in {f.staging}"
        for f in reports
        if f.staging_free < needed
    ]
    if small:
        remedy = (
            "free space, or set TMPDIR to a larger disk; where it is full there is no checkpoint"
        )
        return warn("staging", f"{what}: {_list(small)}", remedy)
    least = min(f.staging_free for f in reports)
    return passed("staging", f"{what}; {_gigabytes(least)} or more are free where workers may be")


def check_paths(reports: Sequence[MachineReport]) -> Verdict | None:
    """Tell whether every machine has the files that the settings name; none where it is so."""
    missing = [f"{f.name} has no {_list(f.missing_paths)}" for f in reports if f.missing_paths]
    if not missing:
        return None
    return fail("files", _list(missing), "put them on a storage that every machine reaches")


def check_model(config: ModelConfig, find_base: Callable[[], BaseModel | None]) -> Verdict:
    """Tell whether the model's weights are all there; ``find_base`` reads what its files hold.

    Raises:
        InputError: they are not.
    """
    name = config.name_or_path
    if name == BUILTIN:
        return passed("model", "the built-in one")
    if name.endswith(".json"):
        return passed("model", f"random weights for {name}")
    base = find_base()
    if base is None:
        return passed("model", f"{name}: all files are there; what is in them is seen when read")
    whole = f"{name}: {count(base.num_weights, 'weight')}, all that are needed, in whole files"
    if base.unused:
        found = f"{whole}; {len(base.unused)} have no place in the model: {list_some(base.unused)}"
        return warn("model", found, "compare its config.json with that of the model it came from")
    head = "; its head is replaced by a new one" if base.has_head else ""
    return passed("model", f"{whole}{head}")


def check_gpu_memory(estimated: MemoryEstimate, gpu_memory: int | None, *, advice: str) -> Verdict:
    """Tell whether a worker's part fits into its GPU."""
    needs = f"a worker needs {_gigabytes(estimated.device)}"
    if gpu_memory is None:
        found = f"{needs}; what a GPU has is not known"
        return warn("GPU memory", found, "say it with --gpu_memory_gb")
    room = usable(gpu_memory)
    found = f"{needs} of {_gigabytes(room)} that a GPU of {_gigabytes(gpu_memory)} has for it"
    if estimated.device > room:
        return fail("GPU memory", found, advice)
    return passed("GPU memory", found)


def check_machine_memory(
    estimated: MemoryEstimate,
    machines: Sequence[Machine],
    *,
    num_workers: int,
    places: Sequence[int],
) -> Verdict:
    """Tell whether the machines' own memory holds the workers that they may get.

    ``places`` are how many of them there is room for on each machine.
    """
    short = []
    for machine, place in zip(machines, places, strict=True):
        workers = min(place, num_workers)
        needed = workers * estimated.machine
        if needed > machine.memory:
            short.append(
                f"{machine.name} has {_gigabytes(machine.memory)} for "
                f"{count(workers, 'worker')} of {_gigabytes(estimated.machine)} each"
            )
    if short:
        remedy = (
            "use fewer workers on a machine, or larger ones; every worker builds the whole model"
        )
        return warn("machine memory", _list(short), remedy)
    return passed("machine memory", f"{_gigabytes(estimated.machine)} for each worker")


def _gigabytes(size: int) -> str:
    """Write bytes as people read them."""
    digits = 0 if size >= 100 * GIGABYTE else 1 if size >= GIGABYTE else 2
    return f"{size / GIGABYTE:,.{digits}f} GB"


def refusing(name: str, action: Callable[[], Verdict], *, remedy: str) -> Verdict:
    """Return an action's verdict, or that it failed for a reason that is the user's to mend."""
    try:
        return action()
    except InputError as error:
        return fail(name, str(error), remedy)
