import math

import pytest
import torch
from torch import nn

from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.train.optimizer import build_optimizer, learning_rate_schedule

TOTAL, WARMUP, PEAK = 50, 5, 2e-3


def expected(schedule: str, step: int) -> float:
    """The definitions of the schedules."""
    if schedule == "constant":
        return PEAK
    if step < WARMUP:
        return PEAK * step / WARMUP
    share = (step - WARMUP) / (TOTAL - WARMUP)
    if schedule == "constant_with_warmup":
        return PEAK
    if schedule == "linear":
        return PEAK * (1 - share)
    if schedule == "polynomial":
        return (PEAK - 1e-7) * (1 - share) + 1e-7
    return PEAK * (1 + math.cos(math.pi * share)) / 2 if share < 1 else 0.0


@pytest.mark.parametrize(
    "schedule",
    ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
)
def test_every_schedule_runs_over_the_steps_once(schedule):
    warmup = 0 if schedule == "constant" else WARMUP
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup, learning_rate=PEAK)
    rate = learning_rate_schedule(config, TOTAL)
    got = [rate(step) for step in range(TOTAL + 1)]
    assert got == pytest.approx([expected(schedule, s) for s in range(TOTAL + 1)], abs=1e-12)


def test_a_step_s_learning_rate_does_not_depend_on_previous_steps():
    rate = learning_rate_schedule(OptimizerConfig(schedule="cosine", warmup_steps=3), 20)
    forwards = [rate(step) for step in range(20)]
    assert [rate(step) for step in reversed(range(20))] == forwards[::-1]


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4))
    optimizer = build_optimizer(
        model, OptimizerConfig(weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    )
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim == 2 else 0.0)
    assert all(g["betas"] == (0.8, 0.9) and g["eps"] == 1e-6 for g in optimizer.param_groups)


def test_frozen_parameters_are_not_optimized():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model[1].parameters()}
    assert isinstance(optimizer, torch.optim.AdamW)


def test_a_fused_update_equals_the_plain_one_up_to_rounding():
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(40, 30)
        optimizer = build_optimizer(
            model, OptimizerConfig(weight_decay=0.1, learning_rate=0.01), fused=fused
        )
        for _ in range(5):
            model(torch.randn(8, 40)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.weight.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-7)
