"""Resolution of 'auto' settings: a simple and fast way to train that fits, by estimate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rm_ray.config.fields import AUTO, flatten
from rm_ray.config.train_config import AUTO_NAMES, TrainConfig
from rm_ray.errors import InputError
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.estimate.gpu_speed import COMPUTE_SHARE, GPU_PEAK, Compute
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.memory_setting import MemorySetting, alternatives
from rm_ray.estimate.network import GPUS_PER_NODE, Network
from rm_ray.estimate.prediction import EQUAL, Choice, choices_of, prefer
from rm_ray.estimate.workload import measure_workload
from rm_ray.preflight.estimate_inputs import (
    architecture_of,
    flops_of,
    memory_setting,
    why_not_estimated,
)
from rm_ray.preflight.machines import Machine, ask_gpus
from rm_ray.preflight.resolved_run import PlannedRun, ResolvedRun
from rm_ray.preflight.summary import smallest_gpu
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

STEPS = 40
"""Steps sampled."""

NETWORK = Network.assumed()
ASSUMED = Compute(peak=GPU_PEAK, reached=COMPUTE_SHARE * GPU_PEAK, source="assumed")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The memory, network and compute speed that a run has to work with."""

    gpu_memory: int | None = None
    """Bytes of the smallest GPU; None if unknown."""
    machine_memory: int | None = None
    """Bytes of host memory per worker that trains on CPUs; None if unknown."""
    network: Network = NETWORK
    compute: Compute = ASSUMED


def find_hardware(config: TrainConfig, machines: Sequence[Machine]) -> Hardware:
    """Find the memory and network available to a worker; defaults if no setting is 'auto'."""
    if not has_auto(config):
        return Hardware()
    cluster = config.cluster
    if not cluster.use_gpu:
        return Hardware(machine_memory=memory_per_worker(config, machines))
    with_gpus = [machine for machine in machines if machine.num_gpus]
    gpu_memory = smallest_gpu(machines)
    if gpu_memory is None:
        sizes = [gpu.memory for reports in ask_gpus(with_gpus) for gpu in reports.gpus]
        gpu_memory = min((size for size in sizes if size), default=None)
    network = Network.assumed(gpus_per_node=most_gpus_per_machine(machines) or GPUS_PER_NODE)
    return Hardware(gpu_memory=gpu_memory, network=network)


def most_gpus_per_machine(machines: Sequence[Machine]) -> int:
    """Return the GPU count of the machine with the most GPUs."""
    return max((machine.num_gpus for machine in machines), default=0)


def memory_per_worker(config: TrainConfig, machines: Sequence[Machine]) -> int | None:
    """Return the least host memory per worker over all machines, in bytes; None if unknown."""
    workers, cpus = (config.cluster.worker_bounds or (1, 1))[1], config.cluster.cpus_per_worker
    shares = [
        machine.memory // min(places, workers)
        for machine in machines
        if (places := machine.places(cpus=cpus, use_gpu=False))
    ]
    return min(shares, default=None)


def has_auto(config: TrainConfig) -> bool:
    """Return whether any setting is 'auto'."""
    return bool(auto_names(config))


def auto_names(config: TrainConfig) -> list[str]:
    """Return the names of the settings that are 'auto'."""
    settings = flatten(config.to_json())
    return [name for name in AUTO_NAMES if settings[name] == AUTO]


def keep_choices(config: TrainConfig, run_folder: Storage) -> TrainConfig:
    """Replace 'auto' and None by the choices that the run recorded, the use of GPUs included.

    So a resumed run waits for GPUs instead of moving to CPUs.
    """
    record = run_folder.read_json(RUN)
    if record is None:
        return config
    stage_before = record["config"]["cluster"].get("zero_stage")
    for setting in ("cluster.use_gpu", *AUTO_NAMES):
        section, name = setting.split(".")
        mine = getattr(config, section)
        before = record["config"][section].get(name)
        if name == "zero_secondary_partition" and config.cluster.zero_stage != stage_before:
            # It was chosen for another stage, and only stage 3 has a second partition.
            before = None if config.cluster.zero_stage == 3 else False
        if getattr(mine, name) in (None, AUTO) and before is not None:
            config = replace(config, **{section: replace(mine, **{name: before})})
    return config


def choose(planned: PlannedRun, hardware: Hardware, *, num_workers: int) -> ResolvedRun:
    """Resolve 'auto' settings for ``num_workers``, the fewest that may train, and log the result.

    On GPUs ``prefer`` decides: among the choices that fit and are predicted within 10% of the
    fastest, it takes the lowest stage, then no recomputation, no second partition, and the least
    traffic. On CPUs the first of ``alternatives`` that fits is taken: stage 0 without recomputation
    comes first. If nothing fits, the choice that needs the least memory is taken.

    Raises:
        InputError: the memory of the GPUs or of the model is unknown.
    """
    config = planned.config
    plain = planned.settle(config.settle())
    names = auto_names(config)
    if not names:
        return plain
    choose_setting = _choose_on_gpus if config.cluster.use_gpu else _choose_on_cpus
    setting, why = choose_setting(plain, config, hardware, num_workers)
    settled = config.settle(
        zero_stage=setting.zero_stage,
        zero_secondary_partition=setting.secondary_size > 0,
        gradient_checkpointing=setting.checkpointing,
    )
    values = flatten(settled.to_json())
    logger.info("auto: %s (%s)", ", ".join(f"{name} {values[name]}" for name in names), why)
    return planned.settle(settled)


def _matches_config(setting: MemorySetting, config: TrainConfig) -> bool:
    """Return whether a choice keeps the stage and recomputation that the config fixes."""
    stage, recomputes = config.cluster.zero_stage, config.model.gradient_checkpointing
    has_stage = stage in (AUTO, setting.zero_stage)
    if config.model.quantization != "none" and setting.zero_stage == 3:
        return False  # which cannot shard 4-bit weights
    is_partitioned = setting.zero_stage == 3 or config.cluster.zero_secondary_partition is not True
    has_place = setting.activation_offloading == config.model.activation_offloading
    return (
        has_stage and is_partitioned and has_place and recomputes in (AUTO, setting.checkpointing)
    )


def _choose_on_cpus(
    plain: ResolvedRun, config: TrainConfig, hardware: Hardware, num_workers: int
) -> tuple[MemorySetting, str]:
    workload = measure_workload(plain.plan, world_size=num_workers, most_steps=STEPS)
    setting = memory_setting(plain, workload, world_size=num_workers)
    options = [option for option in alternatives(setting) if _matches_config(option, config)]
    if why := why_not_estimated(plain):
        return options[0], f"memory is not estimated: {why}"
    architecture = architecture_of(plain)
    row = ForwardPass.of(workload.largest, layout=setting.layout, attention=setting.attention)
    needs = [(option, estimate(architecture, row, option).machine) for option in options]
    return _first_that_fits(needs, hardware.machine_memory)


def _first_that_fits(
    needs: Sequence[tuple[MemorySetting, int]], memory: int | None
) -> tuple[MemorySetting, str]:
    for option, needed in needs:
        if memory is None or needed <= memory:
            return option, f"a worker needs an estimated {needed / GIGABYTE:.2f} GB"
    option, needed = min(needs, key=lambda need: need[1])
    return option, f"nothing fits; this needs the least, {needed / GIGABYTE:.2f} GB per worker"


def _choose_on_gpus(
    plain: ResolvedRun, config: TrainConfig, hardware: Hardware, num_workers: int
) -> tuple[MemorySetting, str]:
    why = why_not_estimated(plain)
    if not why and hardware.gpu_memory is None:
        why = "the memory of the GPUs is unknown"
    if why:
        raise InputError(f"{' and '.join(auto_names(config))} cannot be 'auto': {why}; set a value")
    secondary = config.cluster.zero_secondary_partition
    return _simplest(
        [
            choice
            for choice in predict_ways(plain, hardware, num_workers=num_workers)
            if _matches_config(choice.setting, config)
            and secondary in (AUTO, choice.setting.secondary_size > 0)
        ]
    )


def predict_ways(resolved: ResolvedRun, hardware: Hardware, *, num_workers: int) -> list[Choice]:
    """Return every choice on ``num_workers`` GPUs, with its time and whether it fits."""
    workload = measure_workload(resolved.plan, world_size=num_workers, most_steps=STEPS)
    _, choices = choices_of(
        resolved.plan,
        flops_of(resolved),
        architecture_of(resolved),
        memory_setting(resolved, workload, world_size=num_workers),
        compute=hardware.compute,
        network=hardware.network,
        gpu_memory=hardware.gpu_memory,
    )
    return choices


def _simplest(known: Sequence[Choice]) -> tuple[MemorySetting, str]:
    """Return the preferred choice that fits, or else the one that needs the least memory, and why.

    Raises:
        InputError: a second partition is requested but impossible.
    """
    if not known:
        raise InputError(
            "cluster.zero_secondary_partition is true, but it needs several machines with a worker "
            "on every GPU. Set it to false or 'auto'."
        )
    best = prefer(known)
    if best is None:
        best = min(known, key=lambda choice: choice.memory.device)
        needed = best.memory.device / GIGABYTE
        return best.setting, f"nothing fits; this needs the least, {needed:.1f} GB per GPU"
    fitting = sum(choice.fits is not False for choice in known)
    return best.setting, (
        f"simplest of {fitting} that fit and are predicted within {EQUAL - 1:.0%} of the fastest: "
        f"{best.time.seconds:.3f} s per step, {best.memory.device / GIGABYTE:.1f} GB per GPU"
    )
