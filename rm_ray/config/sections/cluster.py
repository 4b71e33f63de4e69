"""Settings of the workers: number, resources, and how the model is sharded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rm_ray.config.checks import require
from rm_ray.config.fields import MAY_CHANGE

ZeroStage = Literal[0, 1, 2, 3]
"""Stages of DeepSpeed ZeRO; 0 is plain data parallelism without DeepSpeed."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Number and resources of the workers, and how the model is sharded over them."""

    num_workers: Annotated[int | str | None, MAY_CHANGE] = None
    """Number of training processes; by default one per GPU of the cluster, or 1 without GPUs. With
    a range ('2-8') the run starts on the machines available, shrinks when it loses one and grows
    when one joins; the pairs of each step stay the same."""

    use_gpu: Annotated[bool | None, MAY_CHANGE] = None
    """Give each worker a GPU; by default if the cluster has GPUs."""

    cpus_per_worker: Annotated[int, MAY_CHANGE] = 1
    """CPU cores, and compute threads, per worker. Leave some cores for Ray Data."""

    zero_stage: Annotated[Literal["auto", 0, 1, 2, 3], MAY_CHANGE] = 0
    """DeepSpeed ZeRO stage: 1 shards the optimizer, 2 also the gradients, 3 also the weights; 0 is
    plain data parallelism without DeepSpeed. 'auto' chooses the lowest stage that fits in memory
    and is predicted to be within 10% of the fastest; a resumed run keeps it."""

    offload: Annotated[Literal["none", "optimizer", "all"], MAY_CHANGE] = "none"
    """Keep ZeRO's optimizer state ('optimizer'), and at stage 3 also the weights ('all'), in host
    memory."""

    zero_secondary_partition: Annotated[bool | Literal["auto"], MAY_CHANGE] = False
    """At stage 3, also shard the weights used for computing within each machine. They cross the
    network once per optimizer step and are then gathered within the machine, at the cost of one
    more copy of them per machine. No effect unless all machines have equally many workers. 'auto'
    chooses it together with the stage."""

    def __post_init__(self) -> None:
        workers, cpus = self.num_workers, self.cpus_per_worker
        rule = "a number of at least 1, or a range such as '2-8'"
        try:
            least, most = self.worker_bounds or (1, 1)
        except ValueError:
            least, most = 1, 0
        require(1 <= least <= most, "cluster.num_workers", workers, rule)
        require(cpus >= 1, "cluster.cpus_per_worker", cpus, "at least 1")
        least_stage = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        offloads = self.offload != "none"
        rule = "'none' if cluster.zero_stage is 'auto', which cannot predict the time of offloading"
        require(self.zero_stage != "auto" or not offloads, "cluster.offload", self.offload, rule)
        stage = 0 if self.zero_stage == "auto" else self.zero_stage
        rule = f"'none' unless cluster.zero_stage is at least {least_stage} (it is {stage})"
        require(stage >= least_stage, "cluster.offload", self.offload, rule)
        is_sharded = self.zero_stage == 3 and self.offload != "all"
        is_open = "auto" in (self.zero_stage, self.zero_secondary_partition)
        require(
            is_sharded or is_open or not self.zero_secondary_partition,
            "cluster.zero_secondary_partition",
            self.zero_secondary_partition,
            "false unless cluster.zero_stage is 3 and cluster.offload is not 'all' (they are "
            f"{self.zero_stage} and '{self.offload}')",
        )

    @property
    def worker_bounds(self) -> tuple[int, int] | None:
        """Return the minimum and maximum number of workers; None if the cluster decides."""
        if self.num_workers is None:
            return None
        least, _, most = str(self.num_workers).partition("-")
        return int(least), int(most or least)


@dataclass(frozen=True, kw_only=True)
class ResolvedCluster(ClusterConfig):
    """Cluster settings with the workers counted and no 'auto' left."""

    num_workers: Annotated[int, MAY_CHANGE] = 1
    """Number of training processes."""

    use_gpu: Annotated[bool, MAY_CHANGE] = False
    """Whether each worker has a GPU."""

    zero_stage: Annotated[ZeroStage, MAY_CHANGE] = 0
    """DeepSpeed ZeRO stage."""

    zero_secondary_partition: Annotated[bool, MAY_CHANGE] = False
    """Whether the weights used for computing are also sharded within each machine."""
