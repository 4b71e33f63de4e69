"""The preflight run: all checks and estimates in order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.estimate.network import Network
from rm_ray.estimate.prediction import prefer
from rm_ray.preflight.auto_settings import (
    Hardware,
    choose,
    keep_choices,
    memory_per_worker,
    most_gpus_per_machine,
    predict_ways,
)
from rm_ray.preflight.checks.machines import check_machines
from rm_ray.preflight.checks.resources import check_resources
from rm_ray.preflight.checks.services import check_services
from rm_ray.preflight.checks.verdict import Verdict, fail, ok, warn
from rm_ray.preflight.estimate_inputs import count_workers
from rm_ray.preflight.machines import Machine, MachineReport, list_machines
from rm_ray.preflight.options import PreflightCommand
from rm_ray.preflight.planning import plan_run
from rm_ray.preflight.report.findings import Findings
from rm_ray.preflight.resolved_run import PlannedRun, ResolvedRun
from rm_ray.preflight.run_estimate import RunEstimate, estimate_run, predict_times, recommend_choice
from rm_ray.preflight.speed import find_speed
from rm_ray.preflight.target_cluster import TargetCluster, find_target, open_any_cluster
from rm_ray.storage import Storage

STEPS = 500
"""Steps sampled per layout."""


def run_preflight(command: PreflightCommand) -> Findings:
    """Run all checks and estimate the run.

    Raises:
        InputError: no Ray cluster answers at the given address.
    """
    config = keep_earlier_choices(command.config)
    with open_any_cluster(config.cluster):
        machines = list_machines()
        target = find_target(
            config.cluster,
            machines,
            may_be_elsewhere=command.gpu_memory_gb is not None,
            evaluator_cpus=config.evaluator_cpus,
        )
        verdicts = [target.verdict]
        try:
            estimate = _check_and_estimate(command, config, target, machines, verdicts)
        except InputError as error:
            return Findings(verdicts=tuple(verdicts), error=str(error))
    return Findings(verdicts=tuple(verdicts), estimate=estimate)


def _check_and_estimate(
    command: PreflightCommand,
    config: TrainConfig,
    target: TargetCluster,
    machines: Sequence[Machine],
    verdicts: list[Verdict],
) -> RunEstimate | None:
    """Append all verdicts; return the estimate, or None if the storage is not writable.

    Raises:
        InputError: the config or its data is not suitable for training.
    """
    storage = Storage.open(config.run.storage_path)
    use_gpu = bool(target.cluster.use_gpu)
    findings = check_machines(machines, storage, config.model, use_gpu=use_gpu)
    verdicts += [*findings.verdicts, *check_services(config, storage)]
    if not findings.is_storage_writable:  # the tokenised pairs could not be stored
        return None
    planned = plan_run(replace(config, cluster=target.cluster), storage)
    network = find_network(command, planned, verdicts, is_elsewhere=target.is_elsewhere)
    hardware = hardware_of(
        command,
        planned.config,
        [] if target.is_elsewhere else machines,
        network,
        gpu_memory=find_gpu_memory(command.gpu_memory_gb, findings.reports),
    )
    least = (config.cluster.worker_bounds or (count_workers(planned),))[0]
    resolved = choose(planned, hardware, num_workers=least)
    estimate = _estimate(resolved, hardware, least_workers=least)
    verdicts += check_resources(
        resolved, estimate, machines, findings.reports, is_elsewhere=target.is_elsewhere
    )
    estimate = _add_speed(command, resolved, estimate, verdicts)
    return _add_prediction(command, resolved, estimate, network)


def keep_earlier_choices(config: TrainConfig) -> TrainConfig:
    """Return the settings with the choices that an earlier attempt of this run recorded.

    An unreadable storage is ignored here; its own check reports it.
    """
    with suppress(InputError, OSError):
        return keep_choices(config, Storage.open(config.run.storage_path).folder(config.run.name))
    return config


def find_gpu_memory(given_gb: float | None, reports: Sequence[MachineReport]) -> int | None:
    """Return the bytes of the smallest GPU, given or reported; None if unknown."""
    if given_gb is not None:
        return int(given_gb * GIGABYTE)
    sizes = [gpu.memory for report in reports for gpu in report.gpus]
    return None if None in sizes else min((size for size in sizes if size), default=None)


def find_network(
    command: PreflightCommand,
    planned: PlannedRun,
    verdicts: list[Verdict],
    *,
    is_elsewhere: bool,
) -> Network | None:
    """Return the given network, or measure it and append a verdict; None if unknown."""
    if not command.measure_network:
        return command.network
    if is_elsewhere:
        found = "not measured: this is not the cluster of the run"
        verdicts.append(warn("network", found, "measure it there, or pass its speed"))
        return None
    from rm_ray.preflight.link_speed import measure_network  # imports ray.train, which is slow

    try:
        network, found = measure_network(planned.config.cluster, planned.storage)
    except InputError as error:
        remedy = "see cluster/README.md for what fast networks need"
        verdicts.append(fail("network", str(error), remedy))
        return None
    verdicts.append(ok("network", found))
    return network


def hardware_of(
    command: PreflightCommand,
    config: TrainConfig,
    machines: Sequence[Machine],
    network: Network | None,
    *,
    gpu_memory: int | None,
) -> Hardware:
    """Return the hardware for the run; without ``network``, the default one is assumed.

    If no machine has GPUs, each is assumed to have ``--gpus_per_node``.
    """
    gpus = most_gpus_per_machine(machines) or command.gpus_per_node
    return Hardware(
        gpu_memory=gpu_memory,
        machine_memory=memory_per_worker(config, machines),
        network=network or Network.assumed(gpus_per_node=gpus),
        compute=command.compute(None),
    )


def _estimate(resolved: ResolvedRun, hardware: Hardware, *, least_workers: int) -> RunEstimate:
    """Return the estimate; if GPU memory is known, recommend what 'auto' would choose."""
    estimate = estimate_run(
        resolved,
        least_workers=least_workers,
        gpu_memory=hardware.gpu_memory,
        most_steps=STEPS,
        gpus_per_node=hardware.network.gpus_per_node,
    )
    if not estimate.is_predictable or hardware.gpu_memory is None:
        return estimate
    best = prefer(predict_ways(resolved, hardware, num_workers=least_workers))
    return replace(estimate, alternatives=tuple(recommend_choice(estimate.alternatives, best)))


def _add_speed(
    command: PreflightCommand,
    resolved: ResolvedRun,
    estimate: RunEstimate,
    verdicts: list[Verdict],
) -> RunEstimate:
    """Add the given or measured speed; append a warning if it cannot be measured here."""
    try:
        speed = find_speed(
            resolved,
            estimate,
            pairs_per_second=command.pairs_per_second,
            num_steps=command.measure,
        )
    except InputError as error:
        verdicts.append(warn("speed", str(error), "measure on the cluster that will train"))
        return estimate
    return replace(estimate, speed=speed)


def _add_prediction(
    command: PreflightCommand,
    resolved: ResolvedRun,
    estimate: RunEstimate,
    network: Network | None,
) -> RunEstimate:
    """Add the predicted time if the network is known and the model is supported."""
    if network is None or not estimate.is_predictable:
        return estimate
    measured = estimate.speed.flops_per_second if estimate.speed else None
    prediction = predict_times(
        resolved,
        compute=replace(command.compute(measured), is_measured=measured is not None),
        network=network,
        gpu_memory=estimate.gpu_memory,
    )
    return replace(estimate, prediction=prediction)
