"""The workers that will train, here or elsewhere.

tests/integration/test_preflight.py fits them on a running cluster.
"""

from dataclasses import replace

import pytest

from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.errors import InputError
from rm_ray.preflight.machines import Machine
from rm_ray.preflight.target_cluster import TargetCluster, choose_target

WITHOUT_GPU = Machine(node_id="a", name="a", resources={"CPU": 64.0})
WITH_GPUS = Machine(node_id="b", name="b", resources={"CPU": 64.0, "GPU": 8.0})


def target(
    config: ClusterConfig, machine: Machine, *, refusal: str = "", elsewhere: bool = True
) -> TargetCluster:
    bounds = config.worker_bounds or (1, 1)
    fitted = replace(config, num_workers=bounds[1], use_gpu=bool(machine.num_gpus))
    return choose_target(config, [machine], fitted, refusal=refusal, may_be_elsewhere=elsewhere)


def test_the_current_cluster_trains_if_it_has_room_and_gpus():
    config = ClusterConfig(num_workers="2-8", cpus_per_worker=4)
    here = target(config, WITH_GPUS)
    assert (here.is_elsewhere, here.cluster.num_workers, here.cluster.use_gpu) == (False, 8, True)
    assert (
        here.verdict.found == "1 machine, 64 CPUs, 8 GPUs; room for 8 workers of 4 CPUs and a GPU"
    )


def test_workers_without_room_fail_unless_another_cluster_may_train():
    config = ClusterConfig(num_workers=64, cpus_per_worker=1, use_gpu=False)
    here = target(config, WITHOUT_GPU, refusal="too few CPUs", elsewhere=False)
    assert (here.verdict.outcome, here.verdict.found) == ("failed", "too few CPUs")
    there = target(config, WITHOUT_GPU, refusal="too few CPUs")
    assert (there.verdict.outcome, there.is_elsewhere) == ("warning", True)
    assert there.cluster.use_gpu is False


def test_a_cluster_without_gpus_is_not_the_target_if_gpus_are_described():
    config = ClusterConfig(num_workers="8-64", cpus_per_worker=4)
    there = target(config, WITHOUT_GPU)
    assert (there.cluster.num_workers, there.cluster.use_gpu) == (64, True)
    assert "which has 64 workers of 4 CPUs and a GPU" in there.verdict.found
    assert not target(config, WITHOUT_GPU, elsewhere=False).is_elsewhere


def test_another_cluster_needs_a_number_of_workers():
    with pytest.raises(InputError, match=r"Set its number of workers with --cluster\.num_workers"):
        target(ClusterConfig(), WITHOUT_GPU)
