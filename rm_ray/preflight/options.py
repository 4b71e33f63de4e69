"""The options of the preflight command."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.estimate.gpu_speed import COMPUTE_SHARE, GPU_PEAK, TERA, Compute
from rm_ray.estimate.network import GPUS_PER_NODE, Network


@dataclass(frozen=True, kw_only=True)
class PreflightCommand:
    """Report what a run would compute and need, and check everything that it depends on.

    Takes the settings of ``jobs/train.py``. It trains nothing, and claims no GPU except for
    ``--measure_network``; the run reuses the pairs that it tokenises. It also works without the
    cluster that will train: pass ``--gpu_memory_gb`` then. Exits with 0, with 1 if a check failed,
    or with 2 if an input is wrong.
    """

    recipe: Path | None = None
    """YAML file with the run's settings by section."""

    gpu_memory_gb: float | None = None
    """Memory of a GPU in GB (10^9 bytes), if another cluster will train; none: that of the smallest
    GPU in this cluster."""

    pairs_per_second: float | None = None
    """Speed of all workers together, as in the summary of a run."""

    measure: int = 0
    """Measure the speed: run forward and backward passes of N steps on this machine's device."""

    within_node_gb_per_s: float | None = None
    """What a GPU can send to the others in its machine, in GB/s (10^9 bytes): 450 for an H100's
    NVLink."""

    between_nodes_gb_per_s: float | None = None
    """What a GPU can send to other machines, in GB/s: 50 with a 400 Gbit/s card per GPU. If GPUs
    share a card, divide its bandwidth by their number."""

    gpus_per_node: int = GPUS_PER_NODE
    """GPUs per machine that will train."""

    measure_network: bool = False
    """Claim the workers for a few seconds and measure the network within and between machines."""

    gpu_peak_tflops: float = GPU_PEAK / TERA
    """Peak of a GPU's data sheet in the run's dtype, in 10^12 FLOP/s: 989 for an H100 in bfloat16.
    The assumed speed and the MFU are relative to it."""

    compute_share: float = COMPUTE_SHARE
    """Share of the peak that forward and backward passes reach, unless ``--measure`` measures it on
    a GPU; 0.4 is an assumption."""

    json: bool = False
    """Print one JSON document instead; everything else goes to standard error."""

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
            raise InputError("pass --within_node_gb_per_s and --between_nodes_gb_per_s together")
        if self.measure_network and self.within_node_gb_per_s is not None:
            raise InputError(
                "--measure_network and --within_node_gb_per_s both set the network speed: pass one"
            )
        if self.measure < 0:
            raise InputError(f"--measure must be at least 0, got {self.measure}")
        if self.measure and self.pairs_per_second is not None:
            raise InputError("--measure and --pairs_per_second both set the speed: pass one")

    def compute(self, measured: float | None) -> Compute:
        """Return the compute speed of a GPU; ``measured`` is in FLOP/s, None if not measured."""
        return Compute.of(
            peak=self.gpu_peak_tflops * TERA, share=self.compute_share, measured=measured
        )

    @property
    def network(self) -> Network | None:
        """The network given by the options; None if they are not set."""
        if self.within_node_gb_per_s is None or self.between_nodes_gb_per_s is None:
            return None
        return Network(
            within_node=self.within_node_gb_per_s * GIGABYTE,
            between_nodes=self.between_nodes_gb_per_s * GIGABYTE,
            gpus_per_node=self.gpus_per_node,
        )
