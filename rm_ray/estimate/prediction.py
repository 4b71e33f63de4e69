"""The predicted time of a run at every ZeRO stage and on different numbers of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rm_ray.batches.plan import Plan
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.gpu_memory import usable_memory
from rm_ray.estimate.gpu_speed import Compute
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.memory_setting import MemorySetting, alternatives
from rm_ray.estimate.moments import MemoryEstimate
from rm_ray.estimate.network import Network
from rm_ray.estimate.timing import Load, StepTime, predict, sizes_around
from rm_ray.estimate.workload import measure_workload
from rm_ray.model.flops import ModelFlops

STEPS = 40
"""Steps sampled for each number of GPUs."""

EQUAL = 1.1
"""Choices up to this factor slower than the fastest count as equal: predictions are no finer."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to train, with its memory and time, and whether it fits."""

    setting: MemorySetting
    memory: MemoryEstimate
    time: StepTime
    fits: bool | None
    """Whether a worker fits into a GPU; None if its memory is unknown."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """The preferred choice on one number of GPUs; None if nothing fits."""

    num_workers: int
    tokens: float
    """Distinct tokens per step and GPU."""
    best: Choice | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted, not measured, time of a run on GPUs."""

    compute: Compute
    network: Network
    num_steps: int
    num_workers: int
    choices: tuple[Choice, ...]
    """Choices on the requested number of GPUs, the fastest first."""
    curve: tuple[Point, ...]

    @property
    def best(self) -> Choice | None:
        """The preferred choice on the requested number of GPUs; None if nothing fits."""
        return prefer(self.choices)


def prefer(choices: Sequence[Choice]) -> Choice | None:
    """Return the simplest choice within 10% of the fastest that fits or may fit; None if none does.

    Simplest means no activations in host memory, then the lowest stage, then no recomputation, then
    no second partition, then the least traffic: ZeRO's work on the host is not predicted, and grows
    with the stage.
    """
    fitting = [choice for choice in choices if choice.fits is not False]
    fastest = min((choice.time.seconds for choice in fitting), default=0.0)
    equal = [choice for choice in fitting if choice.time.seconds <= EQUAL * fastest]
    return min(equal, key=_complexity, default=None)


def _complexity(choice: Choice) -> tuple[bool, int, bool, bool, float]:
    setting = choice.setting
    return (
        setting.activation_offloading,
        setting.zero_stage,
        setting.checkpointing,
        setting.secondary_size > 0,
        choice.time.traffic,
    )


def choices_of(
    plan: Plan,
    flops: ModelFlops,
    architecture: Architecture,
    setting: MemorySetting,
    *,
    compute: Compute,
    network: Network,
    gpu_memory: int | None,
) -> tuple[Load, list[Choice]]:
    """Return the load of sampled steps, and every choice on the setting's number of GPUs.

    Offloading of activations is among them where it is set, or makes the difference in fitting.
    """
    workers = setting.world_size
    load = Load.of(
        plan,
        flops,
        world_size=workers,
        most_steps=STEPS,
        counts_padding=not compute.is_measured,
    )
    workload = measure_workload(plan, world_size=workers, most_steps=STEPS)
    accumulates = workload.most_micro_batches > 1
    plain = replace(setting, accumulates=accumulates, secondary_size=0)
    forward_pass = ForwardPass.of(workload.largest, layout=plain.layout, attention=plain.attention)

    def judge(option: MemorySetting) -> Choice:
        memory = estimate(architecture, forward_pass, option)
        time = predict(load, architecture, option, compute=compute, network=network)
        fits = None if gpu_memory is None else memory.device <= usable_memory(gpu_memory)
        return Choice(setting=option, memory=memory, time=time, fits=fits)

    choices = []
    for choice in map(judge, ways(plain, network)):
        choices.append(choice)
        if choice.fits is False and choice.setting.checkpointing:
            moved = judge(replace(choice.setting, activation_offloading=True))
            choices += [moved] * (moved.fits is True and moved.setting != choice.setting)
    return load, choices


def predict_run(
    plan: Plan,
    flops: ModelFlops,
    architecture: Architecture,
    setting: MemorySetting,
    *,
    compute: Compute,
    network: Network,
    gpu_memory: int | None,
) -> Prediction:
    """Predict a run at every stage on ``setting.world_size`` GPUs, and on other numbers of GPUs."""
    points, requested = [], setting.world_size
    choices_requested: list[Choice] = []
    for num_workers in sizes_around(requested, smallest=network.gpus_per_node):
        load, choices = choices_of(
            plan,
            flops,
            architecture,
            replace(setting, world_size=num_workers),
            compute=compute,
            network=network,
            gpu_memory=gpu_memory,
        )
        each = load.tokens / load.num_steps / num_workers
        points.append(Point(num_workers=num_workers, tokens=each, best=prefer(choices)))
        if num_workers == requested:
            choices_requested = sorted(choices, key=lambda choice: choice.time.seconds)
    return Prediction(
        compute=compute,
        network=network,
        num_steps=plan.steps.total,
        num_workers=requested,
        choices=tuple(choices_requested),
        curve=tuple(points),
    )


def ways(setting: MemorySetting, network: Network) -> list[MemorySetting]:
    """Return every stage with and without recomputation, and with a second partition if useful.

    Offload of ZeRO's state is left out: its time is not modelled. Activations are offloaded where
    they are recomputed, if the setting says so.
    """
    options = [
        other
        for other in alternatives(setting)
        if other.offload == "none"
        and other.activation_offloading == (setting.activation_offloading and other.checkpointing)
    ]
    whole, rest = divmod(setting.world_size, network.gpus_per_node)
    if whole > 1 and not rest and network.gpus_per_node > 1:
        options += [
            replace(other, secondary_size=network.gpus_per_node)
            for other in options
            if other.zero_stage == 3
        ]
    return options


def describe_prediction(prediction: Prediction) -> list[str]:
    """Return the lines of two tables: one of stages, one of numbers of GPUs."""
    network, compute = prediction.network, prediction.compute
    lines = [
        f"time on {prediction.num_workers} GPUs, predicted, not measured: {compute.source}; "
        f"{network.within_node / 1e9:g} GB/s per GPU within machines of {network.gpus_per_node}, "
        f"{network.between_nodes / 1e9:g} GB/s between them",
        f"  {'stage':9} {'recompute':9} {_HEADER}",
    ]
    for choice in prediction.choices:
        note = {None: "", True: "fits", False: "too large"}[choice.fits]
        if choice is prediction.best:
            note = f"{note}, recommended".removeprefix(", ")
        lines.append(f"  {_way(choice)} {_cells(choice, prediction.num_steps)}  {note}".rstrip())
    lines += [
        "predicted for other numbers of GPUs, each with its recommended settings:",
        f"  {'GPUs':>5} {'tokens each':>11} {'stage':9} {'recompute':9} {_HEADER}",
    ]
    for point in prediction.curve:
        start = f"  {point.num_workers:>5} {point.tokens:>11,.0f}"
        if point.best is None:
            lines.append(f"{start} nothing fits")
            continue
        lines.append(f"{start} {_way(point.best)} {_cells(point.best, prediction.num_steps)}")
    return lines


_HEADER = (
    f"{'s/step':>8} {'compute':>8} {'update':>8} {'exposed':>8} {'traffic':>8} {'MFU':>6} "
    f"{'hours':>8} {'GPU-hours':>10}"
)


def _way(choice: Choice) -> str:
    setting = choice.setting
    stage = f"{setting.zero_stage}{' second' if setting.secondary_size else ''}"
    return f"{stage:9} {setting.recomputation:9}"


def _cells(choice: Choice, num_steps: int) -> str:
    time, workers = choice.time, choice.setting.world_size
    hours = time.hours(num_steps)
    return (
        f"{time.seconds:>8.3f} {time.compute:>8.3f} {time.update:>8.3f} {time.exposed:>8.3f} "
        f"{time.traffic:>8.3f} {time.utilisation:>6.2f} {hours:>8.2f} {hours * workers:>10.1f}"
    )


def prediction_to_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as plain values: seconds, hours, bytes and FLOP/s."""
    num_steps = prediction.num_steps
    return {
        "is_predicted": True,
        "compute": vars(prediction.compute),
        "network": vars(prediction.network),
        "choices": [_choice_to_json(choice, num_steps) for choice in prediction.choices],
        "best": _choice_to_json(prediction.best, num_steps),
        "curve": [
            {
                "gpus": point.num_workers,
                "tokens": point.tokens,
                "best": _choice_to_json(point.best, num_steps),
            }
            for point in prediction.curve
        ],
    }


def _choice_to_json(choice: Choice | None, num_steps: int) -> dict[str, Any] | None:
    if choice is None:
        return None
    hours = choice.time.hours(num_steps)
    return {
        "zero_stage": choice.setting.zero_stage,
        "zero_secondary_partition": choice.setting.secondary_size > 0,
        "gradient_checkpointing": choice.setting.checkpointing,
        "activation_offloading": choice.setting.activation_offloading,
        "fits": choice.fits,
        "device": choice.memory.device,
        "seconds": choice.time.seconds,
        **vars(choice.time),
        "hours": hours,
        "gpu_hours": hours * choice.setting.world_size,
    }
