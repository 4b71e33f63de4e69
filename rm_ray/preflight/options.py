"""What a preflight may be asked, as options of its command."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.estimate.network import GPUS_PER_NODE, Network
from rm_ray.estimate.timing import COMPUTE_SHARE, GPU_PEAK, TERA, Compute


@dataclass(frozen=True, kw_only=True)
class PreflightCommand:
    """Say what a run would compute and need, and check everything that it depends on.

    Takes the settings of ``jobs/train.py``. Nothing is trained, and no GPU is claimed unless
    ``--measure_network`` asks for it; pairs are tokenised and stay so for the run. It works without
    the cluster that will train: give ``--gpu_memory_gb`` then. The exit status is 0, 1 where a
    check failed, 2 where something given is wrong.
    """

    recipe: Path | None = None
    """YAML file with the settings of the run, by section."""

    gpu_memory_gb: float | None = None
    """What a GPU has, in GB of 10^9 bytes, where the cluster at hand is not the one that will
    train; none: the smallest GPU of the cluster."""

    pairs_per_second: float | None = None
    """How fast all workers are together, as the summary of a run says."""

    measure: int = 0
    """Forward and backward passes of so many steps on this machine's device, to know the speed."""

    within_node_gb_per_s: float | None = None
    """What a GPU sends to the others of its machine, in GB of 10^9 bytes per second: 450 by the
    NVLink of an H100."""

    between_nodes_gb_per_s: float | None = None
    """What a GPU sends to other machines, in GB per second: 50 by a card of 400 Gbit/s for each
    GPU. A machine's network divided by its GPUs, where they share it."""

    gpus_per_node: int = GPUS_PER_NODE
    """GPUs of a machine that will train."""

    measure_network: bool = False
    """Claim the workers for some seconds and measure what they send one another, within machines
    and between them, instead of being given it."""

    gpu_peak_tflops: float = GPU_PEAK / TERA
    """What a GPU's data sheet promises in the run's arithmetic, in 10^12 FLOP/s: 989 of an H100 in
    bfloat16. What is predicted of the time relates to it."""

    compute_share: float = COMPUTE_SHARE
    """Share of that peak that forward and backward passes reach by themselves, where ``--measure``
    does not find it on a GPU; 0.4 is an assumption."""

    json: bool = False
    """Print one JSON document instead, and everything else to the standard error."""

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(
        default_factory=TrainConfig
    )

    def __post_init__(self) -> None:
        for name in (
            "gpu_memory_gb",
            "pairs_per_second",
            "within_node_gb_per_s",
            "between_nodes_gb_per_s",
            "gpu_peak_tflops",
            "compute_share",
        ):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"--{name} must be a number above 0, got {value}")
        if self.compute_share > 1:
            raise InputError(f"--compute_share must be at most 1, got {self.compute_share}")
        if self.gpus_per_node < 1:
            raise InputError(f"--gpus_per_node must be at least 1, got {self.gpus_per_node}")
        if (self.within_node_gb_per_s is None) != (self.between_nodes_gb_per_s is None):
            raise InputError("give --within_node_gb_per_s and --between_nodes_gb_per_s together")
        if self.measure_network and self.within_node_gb_per_s is not None:
            raise InputError(
                "--measure_network and --within_node_gb_per_s both say how fast the network is: "
                "give one"
            )
        if self.measure < 0:
            raise InputError(f"--measure must be at least 0, got {self.measure}")
        if self.measure and self.pairs_per_second is not None:
            raise InputError("--measure and --pairs_per_second both say how fast it is: give one")

    def compute(self, measured: float | None) -> Compute:
        """Return how fast a GPU's arithmetic is, given the FLOP/s that were measured on one."""
        peak = self.gpu_peak_tflops * TERA
        if measured is not None:
            source = f"{measured / TERA:.0f} TFLOP/s a GPU in its passes, as measured on one"
            return Compute(peak=peak, reached=measured, source=source)
        reached = self.compute_share * peak
        source = (
            f"{reached / TERA:.0f} TFLOP/s a GPU in its passes, assumed: {self.compute_share:g} of "
            f"a peak of {self.gpu_peak_tflops:g}"
        )
        return Compute(peak=peak, reached=reached, source=source)

    @property
    def network(self) -> Network | None:
        """Return the network that was given, if one was."""
        if self.within_node_gb_per_s is None or self.between_nodes_gb_per_s is None:
            return None
        return Network(
            within_node=self.within_node_gb_per_s * GIGABYTE,
            between_nodes=self.between_nodes_gb_per_s * GIGABYTE,
            gpus_per_node=self.gpus_per_node,
        )
