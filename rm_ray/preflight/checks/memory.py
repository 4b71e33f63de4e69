"""Checks of GPU and host memory against a worker's estimate."""

from __future__ import annotations

from collections.abc import Sequence

from rm_ray.estimate.gpu_memory import usable_memory
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.moments import MemoryEstimate
from rm_ray.preflight.checks.verdict import Verdict, fail, ok, warn
from rm_ray.preflight.checks.wording import count, gigabytes, list_first
from rm_ray.preflight.machines import Machine

NOTHING_FITS = "use more workers, or lower batch.tokens_per_micro_batch or data.max_length"
"""Remedy if no setting fits on the GPUs."""


def options_of(setting: MemorySetting) -> str:
    """Return a setting as command-line options."""
    return (
        f"--cluster.zero_stage {setting.zero_stage} --cluster.offload {setting.offload} "
        f"--model.gradient_checkpointing {setting.checkpointing} "
        f"--model.activation_offloading {setting.activation_offloading}"
    )


def check_gpu_memory(memory: MemoryEstimate, gpu_memory: int | None, *, advice: str) -> Verdict:
    """Check that a worker fits on its GPU; ``advice`` is the remedy if it does not."""
    needs = f"a worker needs {gigabytes(memory.device)}"
    if gpu_memory is None:
        found = f"{needs}; the memory of a GPU is unknown"
        return warn("GPU memory", found, "set it with --gpu_memory_gb")
    room = usable_memory(gpu_memory)
    found = f"{needs}; a GPU of {gigabytes(gpu_memory)} has {gigabytes(room)} for tensors"
    if memory.device > room:
        return fail("GPU memory", found, advice)
    return ok("GPU memory", found)


def check_machine_memory(
    memory: MemoryEstimate,
    machines: Sequence[Machine],
    *,
    num_workers: int,
    places: Sequence[int],
) -> Verdict:
    """Check that each machine's memory fits the workers that it may get.

    ``places`` holds how many workers fit on each machine by CPUs and GPUs.
    """
    short = []
    for machine, place in zip(machines, places, strict=True):
        workers = min(place, num_workers)
        if workers * memory.machine > machine.memory:
            each = f"{count(workers, 'worker')} of {gigabytes(memory.machine)} each"
            short.append(f"{machine.name} has {gigabytes(machine.memory)} for {each}")
    if short:
        remedy = "use fewer workers per machine, or larger machines"
        return warn("machine memory", list_first(short), remedy)
    return ok("machine memory", f"{gigabytes(memory.machine)} per worker")
