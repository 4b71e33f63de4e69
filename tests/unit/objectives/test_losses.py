import math

import pytest
import torch
from comparison_groups import Group, labels_of, ranking, rewards_of

from rm_ray.objectives.losses import comparisons_count, prepare_rewards, sum_by_group

FILLER = Group(rewards=(math.inf, math.nan), comparisons=ranking(0.0, 0.0).comparisons, weight=0.0)


@pytest.mark.parametrize(
    ("given", "inside"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_rewards_become_float32_and_float64_stays(given: torch.dtype, inside: torch.dtype):
    group = ranking(1.5, -2.0)

    prepared = prepare_rewards(rewards_of(group, dtype=given), labels_of(group))

    assert prepared.dtype == inside
    assert prepared.tolist() == [1.5, -2.0]


def test_the_rewards_of_a_filler_become_zero_and_get_no_gradient():
    groups = (ranking(1.5, -2.0), FILLER)
    rewards = rewards_of(*groups)

    prepared = prepare_rewards(rewards, labels_of(*groups))
    (prepared * torch.tensor([1.0, 2.0, math.nan, math.inf])).sum().backward()

    assert prepared.tolist() == [1.5, -2.0, 0.0, 0.0]
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [1.0, 2.0, 0.0, 0.0]


def test_comparisons_of_a_filler_do_not_count():
    assert comparisons_count(labels_of(ranking(1.0, 0.0, 2.0), FILLER)).tolist() == [
        True, True, True, False
    ]  # fmt: skip


def test_sums_are_by_group_and_zero_for_a_group_without_values():
    labels = labels_of(ranking(1.0, 0.0), Group(rewards=(3.0,)), ranking(0.0, 0.0, 0.0))

    sums = sum_by_group(torch.tensor([1.0, 2.0, 4.0, 8.0]), labels.group, labels)

    assert sums.tolist() == [1.0, 0.0, 14.0]
