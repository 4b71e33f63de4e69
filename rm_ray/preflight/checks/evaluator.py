"""Check of the evaluator beside training: its resources, and memory for the model."""

from __future__ import annotations

from collections.abc import Sequence

from rm_ray.config.train_config import ResolvedConfig
from rm_ray.estimate.gpu_memory import usable_memory
from rm_ray.preflight.checks.verdict import Verdict, fail, ok, warn
from rm_ray.preflight.checks.wording import count, gigabytes
from rm_ray.preflight.machines import Machine

ELSEWHERE = "evaluate with --evaluation.where within, or use larger machines"


def check_evaluator(
    config: ResolvedConfig,
    machines: Sequence[Machine],
    *,
    num_parameters: int,
    num_trained: int,
    gpu_memory: int | None,
) -> Verdict | None:
    """Check that a GPU or a machine has room for the evaluator; None if there is none.

    ``machines`` is empty if the cluster is not at
    hand, ``gpu_memory`` None if it is unknown.
    """
    if not config.evaluates_beside:
        return None
    cluster = config.cluster
    size = evaluator_weights(config, num_parameters=num_parameters, num_trained=num_trained)
    on_gpu = cluster.use_gpu and sum(m.num_gpus for m in machines) > cluster.num_workers
    place = count(config.evaluation.cpus, "CPU") + (" and a GPU" if on_gpu else "")
    found = (
        f"{place} and {gigabytes(size)} for weights, beside {count(cluster.num_workers, 'worker')}"
    )
    if on_gpu and gpu_memory is not None and size > usable_memory(gpu_memory):
        found += f"; a GPU has {gigabytes(gpu_memory)}"
        return fail("evaluator", found, ELSEWHERE)
    largest = max((machine.memory for machine in machines), default=None)
    if not on_gpu and largest is not None and size > largest:
        found += f"; the largest machine has {gigabytes(largest)}"
        return fail("evaluator", found, ELSEWHERE)
    if cluster.use_gpu and machines and not on_gpu:
        remedy = "lower cluster.num_workers by 1 for a GPU, or raise evaluation.cpus"
        return warn("evaluator", f"{found}, which take every GPU", remedy)
    return ok("evaluator", found)


def evaluator_weights(config: ResolvedConfig, *, num_parameters: int, num_trained: int) -> int:
    """Return the bytes of the evaluator's weights: frozen ones and ZeRO's are in the dtype."""
    half = 4 if config.model.dtype == "float32" else 2
    each = half if config.cluster.zero_stage > 0 else 4
    return num_trained * each + (num_parameters - num_trained) * half
