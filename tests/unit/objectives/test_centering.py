import math

import pytest
import torch
from comparison_groups import Group, gradients_of, groups, losses_of, ranking
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.objectives.centering import Centered

INNER = BradleyTerry()
OBJECTIVE = Centered(objective=INNER, coefficient=0.25)


def centering(*all_groups: Group) -> list[float]:
    return losses_of(OBJECTIVE, *all_groups).parts["centering"].tolist()


def test_a_pair_is_centered_by_the_squared_sum_of_its_rewards():
    assert centering(ranking(3.0, -1.0), ranking(2.0, -2.0)) == [0.25 * 4.0, 0.0]


def test_more_responses_are_centered_by_twice_their_mean_squared():
    assert centering(ranking(3.0, 1.0, 2.0)) == [0.25 * 16.0]


@given(st.lists(groups(), min_size=1, max_size=4))
def test_parts_are_those_of_an_explicit_loop_and_add_up(all_groups: list[Group]):
    losses, plain = losses_of(OBJECTIVE, *all_groups), losses_of(INNER, *all_groups)

    for group, value in zip(all_groups, losses.parts["centering"], strict=True):
        mean = sum(group.rewards) / len(group.rewards)
        expected = 0.25 * (2 * mean) ** 2 if group.comparisons else 0.0
        assert math.isclose(value.item(), expected, rel_tol=1e-9, abs_tol=1e-12)
    assert torch.equal(losses.parts["loss"], plain.groups)
    assert torch.equal(losses.groups, losses.parts["loss"] + losses.parts["centering"])
    assert torch.equal(losses.has_loss, plain.has_loss)


def test_centering_moves_the_rewards_of_a_group_together():
    group = ranking(3.0, 1.0, 2.0)

    change = gradients_of(OBJECTIVE, group) - gradients_of(INNER, group)

    assert change.tolist() == pytest.approx([0.25 * 2 * 4.0 * 2 / 3] * 3)


def test_a_group_without_a_loss_is_not_centered():
    assert centering(Group(rewards=(3.0,)), ranking(1.0, 0.0)) == [0.0, 0.25]
