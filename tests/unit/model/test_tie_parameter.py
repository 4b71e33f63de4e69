import math

import torch

from rm_ray.model.tie_parameter import STEP, TieParameter


def test_it_starts_where_it_is_told_to():
    parameter = TieParameter(0.5, learning_rate=1e-5)
    assert parameter().tolist() == [torch.tensor(math.log(0.5)).item()]


def test_its_gradient_is_that_of_the_logarithm_whatever_the_learning_rate():
    gradients = []
    for rate in (1e-6, 1.0):
        parameter = TieParameter(2.0, learning_rate=rate)
        (3 * parameter()).sum().backward()
        assert parameter.moved.grad is not None
        gradients.append(parameter.moved.grad.item())
    assert gradients == [3.0, 3.0]


def test_a_step_of_adamw_moves_the_logarithm_by_the_same_amount_at_any_learning_rate():
    for rate in (3e-6, 1e-3):
        parameter = TieParameter(1.0, learning_rate=rate)
        optimizer = torch.optim.AdamW(parameter.parameters(), lr=rate)
        (7 * parameter()).sum().backward()
        optimizer.step()
        assert math.isclose(parameter().item(), -STEP, rel_tol=1e-3)
