"""A resolved run -> its estimated computation, memory and time at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rm_ray.config.sections.batch import Layout
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.group_tokens import GroupLengths
from rm_ray.estimate.gpu_memory import usable_memory
from rm_ray.estimate.gpu_speed import Compute
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.memory_setting import MemorySetting, alternatives
from rm_ray.estimate.moments import MemoryEstimate
from rm_ray.estimate.network import GPUS_PER_NODE, Network
from rm_ray.estimate.prediction import Choice, Prediction, predict_run
from rm_ray.estimate.workload import Workload, in_layout, measure_workload
from rm_ray.model.attention import why_not_packed
from rm_ray.preflight.estimate_inputs import (
    architecture_of,
    count_workers,
    flops_of,
    forward_pass_of,
    memory_setting,
    why_not_estimated,
)
from rm_ray.preflight.resolved_run import ResolvedRun

LAYOUTS: tuple[Layout, ...] = ("packed", "padded")


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One way to train, and a worker's memory with it."""

    setting: MemorySetting
    memory: MemoryEstimate
    is_chosen: bool
    """Whether it matches the settings."""
    is_recommended: bool = False

    def fits(self, gpu_memory: int | None) -> bool | None:
        """Return whether a worker fits on a GPU; None if GPU memory is unknown."""
        return None if gpu_memory is None else self.memory.device <= usable_memory(gpu_memory)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of all workers together, and where it comes from."""

    pairs_per_second: float
    source: str
    flops_per_second: float | None = None
    """FLOP/s of one GPU in forward and backward passes; None if not measured."""


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """The estimated computation, memory and time of a run."""

    config: TrainConfig
    lengths: GroupLengths
    num_eval_pairs: int
    unit: str
    """What the groups are called: 'pairs', or 'groups' if some are not."""
    num_refused: int
    num_steps: int
    num_episodes: int
    workloads: tuple[Workload, ...]
    """One per layout, the run's own first."""
    num_parameters: int
    num_workers: int
    gpu_memory: int | None
    """Bytes of the smallest GPU; None if unknown."""
    alternatives: tuple[Alternative, ...]
    """In order of preference; empty if memory is not estimated."""
    why_no_memory: str = ""
    """Why memory is not estimated; empty if it is."""
    speed: Speed | None = None
    prediction: Prediction | None = None
    """The predicted time; None if the network between GPUs is unknown."""

    @property
    def hours(self) -> float | None:
        """Hours of training steps, without startup, evaluation and checkpoints; None if unknown."""
        if self.speed is None:
            return None
        return self.num_episodes / self.speed.pairs_per_second / 3600

    @property
    def is_predictable(self) -> bool:
        """Whether time can be predicted: on GPUs, for a model whose memory is estimated."""
        return bool(self.config.cluster.use_gpu) and not self.why_no_memory

    @property
    def chosen(self) -> Alternative | None:
        """The alternative that matches the settings; None if memory is not estimated."""
        return next((option for option in self.alternatives if option.is_chosen), None)

    @property
    def recommended(self) -> Alternative | None:
        """The recommended alternative; None if nothing fits."""
        return next((option for option in self.alternatives if option.is_recommended), None)


def estimate_run(
    resolved: ResolvedRun,
    *,
    least_workers: int | None,
    gpu_memory: int | None,
    most_steps: int,
    gpus_per_node: int = GPUS_PER_NODE,
) -> RunEstimate:
    """Estimate what a run computes in both layouts, and a worker's memory at every stage.

    Memory is estimated for ``least_workers``, the fewest that may train; None means all workers.
    """
    num_workers = count_workers(resolved)
    mine = resolved.plan.settings.layout
    others = [layout for layout in LAYOUTS if layout != mine and _suits(layout, resolved)]
    workloads = tuple(
        measure_workload(
            in_layout(resolved.plan, layout), world_size=num_workers, most_steps=most_steps
        )
        for layout in (mine, *others)
    )
    why = why_not_estimated(resolved)
    options: list[Alternative] = []
    if not why:
        fewest = least_workers or num_workers
        largest = measure_workload(resolved.plan, world_size=fewest, most_steps=most_steps)
        setting = memory_setting(resolved, largest, world_size=fewest, gpus_per_node=gpus_per_node)
        options = _list_alternatives(resolved, largest, setting)
    return RunEstimate(
        config=resolved.config,
        lengths=resolved.plan.lengths,
        unit=resolved.train.unit,
        num_eval_pairs=resolved.held_out.num_groups if resolved.held_out else 0,
        num_refused=sum(row["rows"] for row in resolved.refused),
        num_steps=resolved.plan.steps.total,
        num_episodes=resolved.plan.steps.num_episodes,
        workloads=workloads,
        num_parameters=sum(p.numel() for p in resolved.classifier.parameters()),
        num_workers=num_workers,
        gpu_memory=gpu_memory,
        alternatives=tuple(recommend(options, gpu_memory)),
        why_no_memory=why,
    )


def _list_alternatives(
    resolved: ResolvedRun, workload: Workload, setting: MemorySetting
) -> list[Alternative]:
    """Return a worker's memory at every stage, with and without recomputation and offload."""
    architecture, forward_pass = architecture_of(resolved), forward_pass_of(workload, setting)
    return [
        Alternative(
            setting=option,
            memory=estimate(architecture, forward_pass, option),
            is_chosen=option == setting,
        )
        for option in alternatives(setting)
    ]


def predict_times(
    resolved: ResolvedRun, *, compute: Compute, network: Network, gpu_memory: int | None
) -> Prediction:
    """Predict the time of a run at every stage, and on other numbers of GPUs."""
    workload = measure_workload(resolved.plan, world_size=count_workers(resolved), most_steps=1)
    return predict_run(
        resolved.plan,
        flops_of(resolved),
        architecture_of(resolved),
        memory_setting(resolved, workload),
        compute=compute,
        network=network,
        gpu_memory=gpu_memory,
    )


def flops_of_pair(resolved: ResolvedRun, *, recomputes: bool = False) -> float:
    """Return the average FLOPs per pair, forward and backward, and of recomputation if it is on."""
    needed, lengths = flops_of(resolved), resolved.plan.lengths
    flops = needed.training(lengths)
    if recomputes:
        flops = flops + needed.reached.forward(lengths)
    return float(flops.mean())


def recommend(options: Iterable[Alternative], gpu_memory: int | None) -> list[Alternative]:
    """Mark the first alternative that fits; they come in order of preference."""
    marked: list[Alternative] = []
    for option in options:
        is_first = not any(other.is_recommended for other in marked)
        is_best = is_first and bool(option.fits(gpu_memory))
        marked.append(replace(option, is_recommended=is_best))
    return marked


def recommend_choice(options: Iterable[Alternative], best: Choice | None) -> list[Alternative]:
    """Mark the alternative that matches ``best`` instead; keep the marks if it is None."""
    if best is None:
        return list(options)
    wanted = _way(best.setting)
    return [replace(option, is_recommended=_way(option.setting) == wanted) for option in options]


def _way(setting: MemorySetting) -> tuple[int, str, str]:
    return setting.zero_stage, setting.offload, setting.recomputation


def _suits(layout: Layout, resolved: ResolvedRun) -> bool:
    """Return whether the model supports a layout."""
    return layout == "padded" or why_not_packed(resolved.classifier.config) is None
