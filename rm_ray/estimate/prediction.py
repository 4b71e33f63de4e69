"""The predicted time of a run: at every stage, and over numbers of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rm_ray.batches.plan import Plan
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.gpu_memory import usable
from rm_ray.estimate.memory import MemoryEstimate, MemorySetting, alternatives, estimate
from rm_ray.estimate.network import Network
from rm_ray.estimate.timing import Compute, Load, StepTime, predict, sizes_around
from rm_ray.estimate.workload import measure_workload
from rm_ray.model.flops import ModelFlops

STEPS = 40
"""How many steps are looked at for each number of GPUs."""

EQUAL = 1.1
"""Times the fastest's seconds up to which ways count as equally fast: predictions are no finer."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to train, its time, and whether it fits."""

    setting: MemorySetting
    estimated: MemoryEstimate
    time: StepTime
    fits: bool | None
    """Whether a worker fits into a GPU; none where that is not known."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """The preferred way that fits on a number of GPUs, if there is one."""

    num_workers: int
    tokens: float
    """Distinct tokens of a step for each GPU."""
    best: Choice | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run takes on GPUs, predicted and not measured."""

    compute: Compute
    network: Network
    num_steps: int
    num_workers: int
    choices: tuple[Choice, ...]
    """On the asked number of GPUs, the fastest first."""
    curve: tuple[Point, ...]

    @property
    def best(self) -> Choice | None:
        """The preferred way that fits on the asked number of GPUs."""
        return preferred(self.choices)


def preferred(choices: Sequence[Choice]) -> Choice | None:
    """Return the simplest of the ways that fit, or may fit, within 10% of the fastest of them.

    Simplest is the lowest stage, then no recomputation, then no second partition, then the least
    traffic: what ZeRO does on the host is not predicted, and grows with the stage.
    """
    fitting = [choice for choice in choices if choice.fits is not False]
    fastest = min((choice.time.seconds for choice in fitting), default=0.0)
    equal = [choice for choice in fitting if choice.time.seconds <= EQUAL * fastest]
    return min(equal, key=_complexity, default=None)


def _complexity(choice: Choice) -> tuple[int, bool, bool, float]:
    setting = choice.setting
    is_second = setting.secondary_over > 0
    return setting.zero_stage, setting.checkpointing, is_second, choice.time.traffic


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
    """Return the steps that were looked at, and every way to take them on so many GPUs."""
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
    there = replace(setting, accumulates=accumulates, secondary_over=0)
    row = ForwardPass.of(workload.largest, layout=there.layout, attention=there.attention)
    choices = []
    for option in ways(there, network):
        estimated = estimate(architecture, row, option)
        time = predict(load, architecture, option, compute=compute, network=network)
        fits = None if gpu_memory is None else estimated.device <= usable(gpu_memory)
        choices.append(Choice(setting=option, estimated=estimated, time=time, fits=fits))
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
    """Return the times of a run in these settings at every stage, and of other numbers of GPUs."""
    points, asked = [], setting.world_size
    mine: list[Choice] = []
    for num_workers in sizes_around(asked, smallest=network.gpus_per_node):
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
        points.append(Point(num_workers=num_workers, tokens=each, best=preferred(choices)))
        if num_workers == asked:
            mine = sorted(choices, key=lambda choice: choice.time.seconds)
    return Prediction(
        compute=compute,
        network=network,
        num_steps=plan.steps.total,
        num_workers=asked,
        choices=tuple(mine),
        curve=tuple(points),
    )


def ways(setting: MemorySetting, network: Network) -> list[MemorySetting]:
    """Return every stage with and without recomputation, and a second partition where of use.

    Without offload, whose time over the host's memory is not modelled.
    """
    options = [other for other in alternatives(setting) if other.offload == "none"]
    whole, rest = divmod(setting.world_size, network.gpus_per_node)
    if whole > 1 and not rest and network.gpus_per_node > 1:
        options += [
            replace(other, secondary_over=network.gpus_per_node)
            for other in options
            if other.zero_stage == 3
        ]
    return options


def describe_prediction(prediction: Prediction) -> list[str]:
    """Return the tables of stages and of numbers of GPUs, as rows of cells with lines of text."""
    network, compute = prediction.network, prediction.compute
    lines = [
        f"time of {prediction.num_workers} GPUs, predicted, not measured: {compute.source}; "
        f"{network.within_node / 1e9:g} GB/s a GPU within machines of {network.gpus_per_node}, "
        f"{network.between_nodes / 1e9:g} GB/s between them",
        f"  {'stage':9} {'recompute':9} {_HEADER}",
    ]
    for choice in prediction.choices:
        note = {None: "", True: "fits", False: "too large"}[choice.fits]
        if choice is prediction.best:
            note = f"{note}, recommended".removeprefix(", ")
        lines.append(f"  {_way(choice)} {_cells(choice, prediction.num_steps)}  {note}".rstrip())
    lines += [
        "predicted over numbers of GPUs, each in the way recommended there:",
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
    stage = f"{setting.zero_stage}{' second' if setting.secondary_over else ''}"
    return f"{stage:9} {'yes' if setting.checkpointing else 'no':9}"


def _cells(choice: Choice, num_steps: int) -> str:
    time, workers = choice.time, choice.setting.world_size
    hours = time.hours(num_steps)
    return (
        f"{time.seconds:>8.3f} {time.compute:>8.3f} {time.update:>8.3f} {time.exposed:>8.3f} "
        f"{time.traffic:>8.3f} {time.utilisation:>6.2f} {hours:>8.2f} {hours * workers:>10.1f}"
    )


def prediction_to_json(prediction: Prediction) -> dict[str, Any]:
    """Return the same as plain values: seconds, hours, bytes and FLOPs per second."""

    def of(choice: Choice | None) -> dict[str, Any] | None:
        if choice is None:
            return None
        hours = choice.time.hours(prediction.num_steps)
        return {
            "zero_stage": choice.setting.zero_stage,
            "zero_secondary_partition": choice.setting.secondary_over > 0,
            "gradient_checkpointing": choice.setting.checkpointing,
            "fits": choice.fits,
            "device": choice.estimated.device,
            "seconds": choice.time.seconds,
            **vars(choice.time),
            "hours": hours,
            "gpu_hours": hours * choice.setting.world_size,
        }

    return {
        "is_predicted": True,
        "compute": vars(prediction.compute),
        "network": vars(prediction.network),
        "choices": [of(choice) for choice in prediction.choices],
        "best": of(prediction.best),
        "curve": [
            {"gpus": point.num_workers, "tokens": point.tokens, "best": of(point.best)}
            for point in prediction.curve
        ],
    }
