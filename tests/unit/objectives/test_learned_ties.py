import math

import pytest
import torch
from torch import Tensor

from rm_ray.batches.labels import Labels, pair_labels
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.objectives.build import build_objective
from rm_ray.objectives.centering import Centered
from rm_ray.objectives.learned_ties import START, build_tie_parameter

MODELS = ["davidson", "rao_kupper"]


def learned(ties: str) -> ObjectiveConfig:
    return ObjectiveConfig(ties=ties, tie_parameter="learned")  # type: ignore[arg-type]


def labels_of(probabilities: list[float]) -> Labels:
    """Return pairs that the first response wins, or ties."""
    count = len(probabilities)
    labels = pair_labels(torch.zeros(count), torch.ones(count))
    return Labels(**{**vars(labels), "probability": torch.tensor(probabilities)})


@pytest.mark.parametrize("ties", MODELS)
@pytest.mark.parametrize("parameter", [0.2, 1.0, 3.0])
def test_the_losses_are_those_of_the_same_fixed_parameter(ties: str, parameter: float):
    labels = labels_of([1.0, 0.5, 1.0])
    rewards = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logarithm = torch.tensor([math.log(parameter)], dtype=torch.float64)

    fixed = ObjectiveConfig(ties=ties, tie_parameter=parameter)  # type: ignore[arg-type]
    expected = build_objective(fixed)(rewards, labels)
    found = build_objective(learned(ties))(torch.cat([rewards, logarithm]), labels)

    torch.testing.assert_close(found.groups, expected.groups, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        found.parts["tie_parameter"], torch.full((3,), parameter, dtype=torch.float64)
    )


@pytest.mark.parametrize("ties", MODELS)
def test_gradients_reach_rewards_and_parameter(ties: str):
    objective, labels = build_objective(learned(ties)), labels_of([1.0, 0.5, 0.5])
    outputs = torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda given: objective(given, labels).groups, outputs.requires_grad_()
    )


@pytest.mark.parametrize(("ties", "probability"), [("davidson", 0.2), ("rao_kupper", 0.2)])
def test_the_parameter_learns_how_often_equal_responses_tie(ties: str, probability: float):
    config = learned(ties)
    objective = build_objective(config)
    parameter = build_tie_parameter(config, OptimizerConfig(learning_rate=1e-3))
    assert parameter is not None
    optimizer = torch.optim.AdamW(parameter.parameters(), lr=1e-3, weight_decay=0.0)
    labels = labels_of([0.5] * 20 + [1.0] * 80)

    def outputs() -> Tensor:
        return torch.cat([torch.zeros(200), parameter()])

    for _ in range(250):
        optimizer.zero_grad()
        objective(outputs(), labels).groups.mean().backward()
        optimizer.step()

    value = objective(outputs(), labels).parts["tie_parameter"][0].item()
    tie = value / (2 + value) if ties == "davidson" else math.tanh(value / 2)
    assert math.isclose(tie, probability, abs_tol=4e-3)


def test_only_a_learned_parameter_is_a_part_of_the_model():
    for config in (ObjectiveConfig(), ObjectiveConfig(ties="davidson", tie_parameter=0.3)):
        assert build_tie_parameter(config, OptimizerConfig()) is None
    parameter = build_tie_parameter(learned("rao_kupper"), OptimizerConfig())
    assert parameter is not None
    assert math.isclose(parameter().item(), math.log(START["rao_kupper"]), rel_tol=1e-6)


def test_centering_goes_with_it():
    config = ObjectiveConfig(ties="davidson", tie_parameter="learned", centering=0.1)
    objective = build_objective(config)
    assert isinstance(objective, Centered)
    losses = objective(torch.tensor([1.0, 2.0, 0.0]), labels_of([1.0]))
    assert objective.parts == ("loss", "tie_parameter", "centering") == tuple(losses.parts)
    torch.testing.assert_close(losses.parts["centering"], torch.tensor([0.1 * 9]))
