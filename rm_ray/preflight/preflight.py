"""One preflight: all of it in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rm_ray.cluster.ray_cluster import fit_to_cluster, ray_cluster
from rm_ray.config.train_config import BUILTIN, ClusterConfig, TrainConfig
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.estimate.memory import FLOAT32
from rm_ray.estimate.network import Network
from rm_ray.estimate.prediction import Choice, preferred
from rm_ray.preflight import checks
from rm_ray.preflight.auto_settings import (
    Room,
    choose,
    gpus_of_a_machine,
    memory_of_a_worker,
    predict_ways,
)
from rm_ray.preflight.checks import Verdict
from rm_ray.preflight.machines import (
    Machine,
    MachineProbe,
    MachineReport,
    find_software,
    list_machines,
    probe_machines,
)
from rm_ray.preflight.report import (
    ADVICE,
    Alternative,
    RunEstimate,
    Speed,
    describe_plan,
    describe_setting,
    describe_verdicts,
    preflight_to_json,
)
from rm_ray.preflight.resolve import ResolvedRun, keep_choices, resolve_for_workers
from rm_ray.preflight.run_estimate import count_workers, estimate_run, flops_of_pair, predict_times
from rm_ray.preflight.services import ask_services
from rm_ray.runs.attempts import list_checkpoints
from rm_ray.storage import Storage

if TYPE_CHECKING:
    from rm_ray.preflight.options import PreflightCommand

STEPS = 500
"""How many steps are looked at in each layout."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a preflight found; nothing is planned where something given is wrong."""

    verdicts: tuple[Verdict, ...]
    planned: RunEstimate | None = None
    error: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether a check failed."""
        return any(verdict.outcome == "failed" for verdict in self.verdicts)

    def describe(self) -> str:
        """Return the page that people read."""
        pages = [describe_verdicts(self.verdicts)]
        if self.planned is not None:
            pages.append(describe_plan(self.planned))
        return "\n\n".join(["", *pages])

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return preflight_to_json(self.verdicts, self.planned) | {"error": self.error or None}


def run_preflight(command: PreflightCommand) -> Findings:
    """Check what can be checked, then count and estimate.

    Raises:
        InputError: there is no Ray at the given address.
    """
    config = _kept(command.config)
    verdicts: list[Verdict] = []
    with _some_cluster(config.cluster):
        machines = list_machines()
        cluster, verdict, is_elsewhere = _fit(
            config.cluster, machines, may_be_elsewhere=command.gpu_memory_gb is not None
        )
        config = replace(config, cluster=cluster)
        verdicts.append(verdict)
        try:
            storage = Storage.open(config.run.storage_path)
            reports = _ask_machines(config, machines, storage, verdicts)
            verdicts += ask_services(config, storage)
            if reports is None:  # pairs could not be kept anywhere
                return Findings(verdicts=tuple(verdicts))
            resolved = resolve_for_workers(config)
            network, told = _network(command, resolved, is_elsewhere=is_elsewhere)
            verdicts += [told] if told else []
            known = [] if is_elsewhere else machines
            room = _room(command, config, known, network, gpu_memory=_gpu_memory(command, reports))
            least = (command.config.cluster.worker_bounds or (count_workers(resolved),))[0]
            resolved = choose(resolved, room, num_workers=least)
            config = resolved.config
            planned = estimate_run(
                resolved,
                least_workers=least,
                gpu_memory=room.gpu_memory,
                most_steps=STEPS,
                gpus_per_node=room.network.gpus_per_node,
            )
            predicts = bool(config.cluster.use_gpu) and not planned.why_no_memory
            if predicts and room.gpu_memory is not None:
                best = preferred(predict_ways(resolved, room, num_workers=least))
                planned = replace(planned, alternatives=_recommend(planned.alternatives, best))
        except InputError as error:
            return Findings(verdicts=tuple(verdicts), error=str(error))
        verdicts += _judge(resolved, planned, machines, reports, is_elsewhere=is_elsewhere)
        try:
            planned = replace(planned, speed=_speed(command, resolved, planned))
        except InputError as error:
            verdicts.append(checks.warn("speed", str(error), "measure where it trains"))
        if network is not None and predicts:
            measured = planned.speed.flops_per_second if planned.speed else None
            prediction = predict_times(
                resolved,
                compute=replace(command.compute(measured), is_measured=measured is not None),
                network=network,
                gpu_memory=planned.gpu_memory,
            )
            planned = replace(planned, prediction=prediction)
    return Findings(verdicts=tuple(verdicts), planned=planned)


@contextmanager
def _some_cluster(config: ClusterConfig) -> Iterator[None]:
    """Use the cluster that there is, or a local one, as small as this machine if need be."""
    cores = os.cpu_count() or 1
    least, _ = config.worker_bounds or (1, 1)
    fits = least * config.cpus_per_worker <= cores
    with ray_cluster(config if fits else ClusterConfig()):
        yield


def _fit(
    config: ClusterConfig, machines: Sequence[Machine], *, may_be_elsewhere: bool
) -> tuple[ClusterConfig, Verdict, bool]:
    """Return the workers that there will be, and whether that is on another cluster than this.

    Raises:
        InputError: it is on another one, and nobody says how many there are.
    """
    refusal, bounds = None, config.worker_bounds
    try:
        fitted = fit_to_cluster(config)
    except InputError as error:
        refusal, fitted = str(error), replace(config, num_workers=(bounds or (1, 1))[1])
    has_gpus = any(machine.num_gpus for machine in machines)
    is_elsewhere = may_be_elsewhere and (refusal is not None or not has_gpus)
    if is_elsewhere:
        if bounds is None:
            raise InputError(
                "with --gpu_memory_gb the cluster that will train may be another one than that at "
                "hand, so say how many workers it has by --cluster.num_workers"
            )
        fitted = replace(config, num_workers=bounds[1], use_gpu=config.use_gpu is not False)
    each = checks.count(fitted.cpus_per_worker, "CPU") + (" and a GPU" if fitted.use_gpu else "")
    room = f"{checks.count(int(fitted.num_workers or 1), 'worker')} of {each}"
    verdict = checks.check_cluster(machines, room, refusal, is_elsewhere=is_elsewhere)
    return fitted, verdict, is_elsewhere


def _ask_machines(
    config: TrainConfig, machines: Sequence[Machine], storage: Storage, verdicts: list[Verdict]
) -> list[MachineReport] | None:
    """Ask every machine and judge what it says; return what those said that answered.

    None where the storage cannot be written.
    """
    try:
        with checks.left_by_driver(storage) as token:
            reports = probe_machines(
                machines, MachineProbe(storage=storage, token=token, paths=_paths(config))
            )
            written = {info.base_name for info in storage.list(token)} - {"driver"}
    except InputError as error:
        verdicts.append(checks.fail("storage", str(error), "give this user a folder or URI"))
        return None
    verdicts.append(checks.check_answers(reports))
    if not (reports := [one for one in reports if not one.error]):
        return reports
    use_gpu = bool(config.cluster.use_gpu)
    found = [
        checks.check_software(reports, find_software()),
        checks.check_gpus(reports, use_gpu=use_gpu, dtype=config.model.dtype),
        checks.check_compiler(reports, use_gpu=use_gpu, liger=config.model.liger),
        checks.check_storage(reports, written, storage),
        checks.check_paths(reports),
    ]
    verdicts += [verdict for verdict in found if verdict is not None]
    return reports


def _paths(config: TrainConfig) -> tuple[str, ...]:
    """Return the files and folders of this machine that workers read."""
    names = (config.model.name_or_path, config.model.tokenizer or BUILTIN)
    paths = [Path(name).expanduser().resolve() for name in names if name != BUILTIN]
    return tuple(str(path) for path in paths if path.exists())


def _gpu_memory(command: PreflightCommand, reports: Sequence[MachineReport]) -> int | None:
    """Return the bytes of the smallest GPU that may train."""
    if command.gpu_memory_gb is not None:
        return int(command.gpu_memory_gb * GIGABYTE)
    sizes = [gpu.memory for f in reports for gpu in f.gpus]
    return None if None in sizes else min((size for size in sizes if size), default=None)


def _speed(command: PreflightCommand, resolved: ResolvedRun, planned: RunEstimate) -> Speed | None:
    if command.pairs_per_second is not None:
        return Speed(pairs_per_second=command.pairs_per_second, source="given")
    if not command.measure:
        return None
    from rm_ray.preflight.speed import measure_speed

    workers = planned.num_workers
    chosen = next((option for option in planned.alternatives if option.is_chosen), None)
    activations = 0 if chosen is None else chosen.estimated.part("activations")
    one = measure_speed(
        resolved,
        num_steps=command.measure,
        world_size=workers,
        needed=2 * FLOAT32 * planned.num_parameters + activations,
    )
    source = f"{one:.1f} on this machine's device, times {workers}, without exchange or optimizer"
    reached = None
    if torch.cuda.is_available():
        again = 4 / 3 if resolved.config.model.recomputes else 1.0
        reached = one * flops_of_pair(resolved) * again
    return Speed(pairs_per_second=one * workers, source=source, flops_per_second=reached)


def _recommend(alternatives: Sequence[Alternative], best: Choice | None) -> tuple[Alternative, ...]:
    """Mark the way that 'auto' would take, in the table of memory too."""
    if best is None:
        return tuple(alternatives)
    wanted = (best.setting.zero_stage, best.setting.offload, best.setting.checkpointing)
    return tuple(
        replace(
            option,
            is_recommended=wanted
            == (option.setting.zero_stage, option.setting.offload, option.setting.checkpointing),
        )
        for option in alternatives
    )


def _kept(config: TrainConfig) -> TrainConfig:
    """Return the settings with what a run of that name chose as it began.

    A storage that cannot be read is judged by its check.
    """
    with suppress(InputError, OSError):
        return keep_choices(config, Storage.open(config.run.storage_path).folder(config.run.name))
    return config


def _room(
    command: PreflightCommand,
    config: TrainConfig,
    machines: Sequence[Machine],
    network: Network | None,
    *,
    gpu_memory: int | None,
) -> Room:
    """Return where a run is to fit on these machines, on the network given or measured if any.

    Of machines without GPUs, or none, those asked for by ``--gpus_per_node`` are assumed.
    """
    gpus = gpus_of_a_machine(machines) or command.gpus_per_node
    return Room(
        gpu_memory=gpu_memory,
        machine_memory=memory_of_a_worker(config, machines),
        network=network or Network.assumed(gpus_per_node=gpus),
        compute=command.compute(None),
    )


def _network(
    command: PreflightCommand, resolved: ResolvedRun, *, is_elsewhere: bool
) -> tuple[Network | None, Verdict | None]:
    """Return the network that is given, or measured with what came of that."""
    if not command.measure_network:
        return command.network, None
    if is_elsewhere:
        found = "not measured: this is not the cluster of the run"
        return None, checks.warn("network", found, "measure it there, or give its speed")
    from rm_ray.preflight.link_speed import measure_network

    try:
        network, found = measure_network(resolved.config.cluster, resolved.storage)
    except InputError as error:
        remedy = "see cluster/README.md for what fast networks need"
        return None, checks.fail("network", str(error), remedy)
    return network, checks.passed("network", found)


def _judge(
    resolved: ResolvedRun,
    planned: RunEstimate,
    machines: Sequence[Machine],
    reports: Sequence[MachineReport],
    *,
    is_elsewhere: bool,
) -> list[Verdict]:
    """Check disks and memory, now that it is known what is needed."""
    config, size = resolved.config, planned.num_parameters
    disks = [
        checks.check_disk(
            resolved.storage,
            config.checkpoint,
            num_parameters=size,
            num_steps=planned.num_steps,
            num_there=len(list_checkpoints(resolved.run_folder)),
        ),
    ]
    use_gpu, cpus = bool(config.cluster.use_gpu), config.cluster.cpus_per_worker
    trains = {m.name for m in machines if m.places(cpus=cpus, use_gpu=use_gpu)}
    staging = [one for one in reports if is_elsewhere or one.name in trains]
    if staging:
        disks.append(checks.check_staging(staging, num_parameters=size))
    found = [checks.elsewhere(verdict) for verdict in disks] if is_elsewhere else disks
    chosen = next((option for option in planned.alternatives if option.is_chosen), None)
    if chosen is None:
        return found
    cluster = config.cluster
    if cluster.use_gpu:
        best = next((option for option in planned.alternatives if option.is_recommended), None)
        advice = ADVICE if best is None else describe_setting(best.setting)
        found.append(checks.check_gpu_memory(chosen.estimated, planned.gpu_memory, advice=advice))
    known = [] if is_elsewhere else machines
    found.append(
        checks.check_machine_memory(
            chosen.estimated,
            known,
            num_workers=planned.num_workers,
            places=[machine.places(cpus=cpus, use_gpu=use_gpu) for machine in known],
        )
    )
    return found
