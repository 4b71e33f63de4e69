"""Settings that are 'auto' -> a fast way to train that fits, by estimate and prediction."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from rm_ray.config.train_config import CHOSEN, TrainConfig, ZeroStage, flatten
from rm_ray.errors import InputError
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.estimate.memory import MemorySetting, alternatives, estimate
from rm_ray.estimate.network import GPUS_PER_NODE, Network
from rm_ray.estimate.prediction import EQUAL, Choice, choices_of, preferred
from rm_ray.estimate.timing import COMPUTE_SHARE, GPU_PEAK, Compute
from rm_ray.estimate.workload import measure_workload
from rm_ray.model.flops import ModelFlops
from rm_ray.preflight.machines import Machine, ask_gpus
from rm_ray.preflight.resolve import ResolvedRun
from rm_ray.preflight.run_estimate import architecture_of, memory_setting, why_not_estimated
from rm_ray.preflight.summary import smallest_gpu

logger = logging.getLogger(__name__)

STEPS = 40
"""How many steps are looked at."""

NETWORK = Network.assumed()
ASSUMED = Compute(peak=GPU_PEAK, reached=COMPUTE_SHARE * GPU_PEAK, source="assumed")


@dataclass(frozen=True, kw_only=True)
class Room:
    """Where a run is to fit."""

    gpu_memory: int | None = None
    """Bytes of the smallest GPU."""
    machine_memory: int | None = None
    """Bytes of a machine's own memory for each worker that trains on its CPUs."""
    network: Network = NETWORK
    compute: Compute = ASSUMED


def find_room(config: TrainConfig, machines: Sequence[Machine]) -> Room:
    """Ask the cluster what a worker may take, where something is to be chosen."""
    if not is_open(config):
        return Room()
    cluster = config.cluster
    if not cluster.use_gpu:
        return Room(machine_memory=memory_of_a_worker(config, machines))
    with_gpus = [machine for machine in machines if machine.num_gpus]
    gpu_memory = smallest_gpu(machines)
    if gpu_memory is None:
        told = [gpu.memory for reports in ask_gpus(with_gpus) for gpu in reports.gpus]
        gpu_memory = min((size for size in told if size), default=None)
    network = Network.assumed(gpus_per_node=gpus_of_a_machine(machines) or GPUS_PER_NODE)
    return Room(gpu_memory=gpu_memory, network=network)


def gpus_of_a_machine(machines: Sequence[Machine]) -> int:
    """Return the GPUs of the machine with the most."""
    return max((machine.num_gpus for machine in machines), default=0)


def memory_of_a_worker(config: TrainConfig, machines: Sequence[Machine]) -> int | None:
    """Return the bytes of a machine's memory for each worker that it may get, the least of all."""
    workers, cpus = (config.cluster.worker_bounds or (1, 1))[1], config.cluster.cpus_per_worker
    shares = [
        machine.memory // min(places, workers)
        for machine in machines
        if (places := machine.places(cpus=cpus, use_gpu=False))
    ]
    return min(shares, default=None)


def is_open(config: TrainConfig) -> bool:
    """Tell whether a setting is yet to be chosen."""
    settings = flatten(config.to_json())
    return any(settings[name] == "auto" for name in CHOSEN)


def choose(resolved: ResolvedRun, room: Room, *, num_workers: int) -> ResolvedRun:
    """Fill in what is 'auto' for the fewest workers that the run may go on with; say it in a line.

    On GPUs ``preferred`` decides: of the ways that fit and are predicted within 10% of the fastest
    of them, that of the lowest stage, then without recomputation, without a second partition, with
    the least traffic. On CPUs it is the first that fits of the order in which settings are to be
    preferred, stage 0 without recomputation before all others. Where nothing fits, what needs the
    least memory is taken.

    Raises:
        InputError: the memory of GPUs or of the model is not known.
    """
    config = resolved.config
    if not is_open(config):
        return resolved
    plain = replace(resolved, config=_with(config, stage=0, recomputes=False, is_secondary=False))
    if not config.cluster.use_gpu:
        setting, why = _choose_on_cpus(plain, config, room, num_workers)
    else:
        setting, why = _choose_on_gpus(plain, config, room, num_workers)
    chosen = _with(
        config,
        stage=setting.zero_stage,
        recomputes=setting.checkpointing,
        is_secondary=setting.secondary_over > 0,
    )
    asked, now = flatten(config.to_json()), flatten(chosen.to_json())
    told = ", ".join(f"{name} {now[name]}" for name in CHOSEN if asked[name] == "auto")
    logger.info("auto: %s (%s)", told, why)
    return replace(resolved, config=chosen)


def _with(config: TrainConfig, *, stage: int, recomputes: bool, is_secondary: bool) -> TrainConfig:
    """Return the settings with what is 'auto' replaced."""
    cluster, model = config.cluster, config.model
    if cluster.zero_stage != "auto":
        stage = cluster.zero_stage
    if cluster.zero_secondary_partition != "auto":
        is_secondary = cluster.zero_secondary_partition
    if model.gradient_checkpointing == "auto":
        model = replace(model, gradient_checkpointing=recomputes)
    cluster = replace(
        cluster,
        zero_stage=cast(ZeroStage, stage),
        zero_secondary_partition=is_secondary and stage == 3,
    )
    return replace(config, model=model, cluster=cluster)


def _is_asked(setting: MemorySetting, config: TrainConfig) -> bool:
    """Tell whether a way to train keeps the stage and the recomputation that the settings fix."""
    stage, recomputes = config.cluster.zero_stage, config.model.gradient_checkpointing
    has_stage = stage in ("auto", setting.zero_stage)
    is_partitioned = setting.zero_stage == 3 or config.cluster.zero_secondary_partition is not True
    return has_stage and is_partitioned and recomputes in ("auto", setting.checkpointing)


def _choose_on_cpus(
    plain: ResolvedRun, config: TrainConfig, room: Room, num_workers: int
) -> tuple[MemorySetting, str]:
    workload = measure_workload(plain.plan, world_size=num_workers, most_steps=STEPS)
    setting = memory_setting(plain, workload, world_size=num_workers)
    options = [option for option in alternatives(setting) if _is_asked(option, config)]
    if why := why_not_estimated(plain):
        return options[0], f"memory is not estimated, since {why}"
    architecture = architecture_of(plain)
    row = ForwardPass.of(workload.largest, layout=setting.layout, attention=setting.attention)
    needs = [(option, estimate(architecture, row, option).machine) for option in options]
    return _first_that_fits(needs, room.machine_memory)


def _first_that_fits(
    needs: Sequence[tuple[MemorySetting, int]], memory: int | None
) -> tuple[MemorySetting, str]:
    for option, needed in needs:
        if memory is None or needed <= memory:
            return option, f"a worker needs {needed / GIGABYTE:.2f} GB by estimate"
    option, needed = min(needs, key=lambda need: need[1])
    return option, f"nothing fits; this needs the least, {needed / GIGABYTE:.2f} GB a worker"


def _choose_on_gpus(
    plain: ResolvedRun, config: TrainConfig, room: Room, num_workers: int
) -> tuple[MemorySetting, str]:
    why = why_not_estimated(plain)
    if not why and room.gpu_memory is None:
        why = "it is not known what memory the GPUs have"
    if why:
        names = [name for name in CHOSEN if flatten(config.to_json())[name] == "auto"]
        raise InputError(f"{' and '.join(names)} cannot be 'auto': {why}; set a value")
    secondary = config.cluster.zero_secondary_partition
    return _simplest(
        [
            choice
            for choice in predict_ways(plain, room, num_workers=num_workers)
            if _is_asked(choice.setting, config)
            and secondary in ("auto", choice.setting.secondary_over > 0)
        ]
    )


def predict_ways(resolved: ResolvedRun, room: Room, *, num_workers: int) -> list[Choice]:
    """Return every way to train on so many GPUs with its time, and whether it fits."""
    workload = measure_workload(resolved.plan, world_size=num_workers, most_steps=STEPS)
    _, choices = choices_of(
        resolved.plan,
        ModelFlops.of(resolved.classifier),
        architecture_of(resolved),
        memory_setting(resolved, workload, world_size=num_workers),
        compute=room.compute,
        network=room.network,
        gpu_memory=room.gpu_memory,
    )
    return choices


def _simplest(known: Sequence[Choice]) -> tuple[MemorySetting, str]:
    """Return the preferred way that fits, else what needs the least memory.

    Raises:
        InputError: a second partition is asked for where there can be none.
    """
    if not known:
        raise InputError(
            "cluster.zero_secondary_partition is true, which takes several machines that are full "
            "of workers; set it to false or 'auto'"
        )
    best = preferred(known)
    if best is None:
        best = min(known, key=lambda choice: choice.estimated.device)
        needed = best.estimated.device / GIGABYTE
        return best.setting, f"nothing fits; this needs the least, {needed:.1f} GB a GPU"
    fitting = sum(choice.fits is not False for choice in known)
    return best.setting, (
        f"of {fitting} ways that fit the simplest predicted within {EQUAL - 1:.0%} of the fastest: "
        f"{best.time.seconds:.3f} s a step, {best.estimated.device / GIGABYTE:.1f} GB a GPU"
    )
