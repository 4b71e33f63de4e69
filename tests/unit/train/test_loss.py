import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.train.loss import bradley_terry_loss

rewards = st.floats(-50, 50, width=32)


def loss(chosen: float, rejected: float, margin: float = 0.0) -> float:
    values = (torch.tensor([v], dtype=torch.float64) for v in (chosen, rejected, margin))
    return bradley_terry_loss(*values).item()


def test_the_loss_of_equal_rewards_is_log_two():
    assert loss(3.0, 3.0) == math.log(2)


@given(rewards, rewards)
def test_the_loss_is_the_negative_log_probability_that_the_chosen_wins(chosen, rejected):
    expected = math.log1p(math.exp(-(chosen - rejected)))
    assert math.isclose(loss(chosen, rejected), expected, rel_tol=1e-9, abs_tol=1e-12)


@given(rewards, rewards, st.floats(-10, 10, width=32))
def test_only_the_difference_counts(chosen, rejected, shift):
    moved = loss(chosen + shift, rejected + shift)
    assert math.isclose(loss(chosen, rejected), moved, rel_tol=1e-6, abs_tol=1e-9)


@given(rewards, rewards)
def test_the_probabilities_of_a_pair_and_its_swap_add_up_to_one(chosen, rejected):
    both = math.exp(-loss(chosen, rejected)) + math.exp(-loss(rejected, chosen))
    assert math.isclose(both, 1.0, rel_tol=1e-9)


@given(rewards, rewards, st.floats(0, 5, width=32))
def test_a_margin_counts_like_a_lower_chosen_reward(chosen, rejected, margin):
    expected = loss(chosen - margin, rejected)
    assert math.isclose(loss(chosen, rejected, margin), expected, rel_tol=1e-9, abs_tol=1e-12)
