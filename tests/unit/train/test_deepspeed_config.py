"""DeepSpeed's settings."""

import pytest

from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.train.deepspeed_config import BUCKET, LIVE, deepspeed_settings, find_secondary_size

LAYER_OF_70B = 2 * 8_192**2 + 2 * 8_192 * 1_024 + 3 * 8_192 * 28_672


@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ([0, 0, 1, 1], 2),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], 3),
        ([1, 1, 0, 0], 2),
        ([0], 1),
        ([0, 0, 0, 0], 1),  # the first partition already stays within the machine
        ([0, 1, 2, 3], 1),  # a partition over one worker would be the full model
        ([0, 0, 1], 1),
        ([0, 0, 1, 1, 1], 1),
        ([0, 1, 0, 1], 1),  # groups would cross machines
        ([0, 0, 1, 1, 0, 0], 1),
        ([0, 0, 1, 0, 0, 1], 1),
    ],
)
def test_a_second_partition_spans_a_machine_if_all_have_the_same_number_of_ranks(nodes, size):
    assert find_secondary_size(nodes) == size


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gpus_exchange_gradients_during_the_backward_pass(stage):
    cluster = ClusterConfig(zero_stage=stage)
    zero = {
        on_gpu: deepspeed_settings(cluster, OptimizerConfig(), bf16=True, on_gpu=on_gpu)[
            "zero_optimization"
        ]
        for on_gpu in (False, True)
    }
    assert zero[True] == {**zero[False], "overlap_comm": True}
    assert zero[True]["reduce_bucket_size"] == BUCKET
    assert zero[True].get("stage3_max_reuse_distance") == (LIVE if stage == 3 else None)


def test_a_layer_of_70b_stays_gathered_from_its_recomputation_to_its_gradient():
    assert LIVE >= 2 * LAYER_OF_70B
