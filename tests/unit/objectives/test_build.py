"""Which objective the settings build, and what must hold for every one of them."""

import copy
import math
import pickle
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from comparison_groups import Comparison, Group, labels_of, loss_of, ranking, rewards_of
from torch import Tensor
from torch._subclasses import FakeTensorMode

from rm_ray.batches.labels import Labels
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.objectives.build import build_objective
from rm_ray.objectives.centering import Centered
from rm_ray.objectives.losses import Losses
from rm_ray.objectives.outcomes import DavidsonOutcomes, RaoKupperOutcomes
from rm_ray.objectives.plackett_luce import PlackettLuce
from rm_ray.objectives.regression import Regression

CONFIGS = (
    ObjectiveConfig(),
    ObjectiveConfig(centering=0.01),
    ObjectiveConfig(margin="scale"),
    ObjectiveConfig(ties="drop", noise=0.2),
    ObjectiveConfig(ties="davidson", label_smoothing=0.1),
    ObjectiveConfig(ties="rao_kupper", tie_parameter=0.5, margin="ignore", centering=0.5),
    ObjectiveConfig(loss="plackett_luce"),
    ObjectiveConfig(loss="plackett_luce", centering=0.01),
    ObjectiveConfig(loss="regression"),
)

every_objective = pytest.mark.parametrize("config", CONFIGS, ids=str)

GROUPS = (
    Group(
        rewards=(0.5, -1.25, 2.0),
        comparisons=(
            Comparison(better=0, worse=1, margin=1.0),
            Comparison(better=2, worse=1, margin=0.5, weight=2.0),
            Comparison(better=2, worse=0, probability=0.5, margin=0.25),
        ),
        scores=(1.0, math.nan, -0.5),
    ),
    Group(rewards=(0.75,), scores=(2.0,)),
    Group(
        rewards=(1.5, 0.25),
        comparisons=(Comparison(better=1, worse=0, probability=0.75, margin=2.0),),
    ),
    ranking(1.0, 0.5, 0.25, -2.0),
)


def run(config: ObjectiveConfig, rewards: Tensor, labels: Labels) -> tuple[Losses, Tensor]:
    """Return the losses, and the gradient of their sum."""
    leaf = rewards.detach().clone().requires_grad_()
    losses = build_objective(config)(leaf, labels)
    losses.groups.sum().backward()
    assert leaf.grad is not None
    return losses, leaf.grad


@pytest.mark.parametrize(
    ("config", "objective"),
    [
        (ObjectiveConfig(), BradleyTerry()),
        (ObjectiveConfig(margin="ignore"), BradleyTerry(margin="ignore")),
        (ObjectiveConfig(ties="drop"), BradleyTerry(drop_ties=True)),
        (
            ObjectiveConfig(ties="davidson"),
            BradleyTerry(outcomes=DavidsonOutcomes(nu=1.0), margin="ignore"),
        ),
        (
            ObjectiveConfig(ties="davidson", tie_parameter=0.5, margin="ignore"),
            BradleyTerry(outcomes=DavidsonOutcomes(nu=0.5), margin="ignore"),
        ),
        (
            ObjectiveConfig(ties="rao_kupper"),
            BradleyTerry(outcomes=RaoKupperOutcomes(eta=math.log(2)), margin="ignore"),
        ),
        (
            ObjectiveConfig(ties="rao_kupper", tie_parameter=0.25),
            BradleyTerry(outcomes=RaoKupperOutcomes(eta=0.25), margin="ignore"),
        ),
        (ObjectiveConfig(label_smoothing=0.1), BradleyTerry(label_smoothing=0.1)),
        (ObjectiveConfig(noise=0.1), BradleyTerry(noise=0.1)),
        (ObjectiveConfig(loss="plackett_luce"), PlackettLuce()),
        (ObjectiveConfig(loss="regression"), Regression()),
        (
            ObjectiveConfig(centering=0.01),
            Centered(objective=BradleyTerry(), coefficient=0.01),
        ),
    ],
)
def test_settings_build_their_objective(config: ObjectiveConfig, objective: object):
    assert build_objective(config) == objective


@every_objective
def test_gradients_are_those_of_the_values(config: ObjectiveConfig):
    labels = labels_of(*GROUPS)

    assert torch.autograd.gradcheck(
        lambda rewards: build_objective(config)(rewards, labels).groups, rewards_of(*GROUPS)
    )


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_have_the_precision_of_the_rewards(config: ObjectiveConfig, dtype: torch.dtype):
    losses, _ = run(config, rewards_of(*GROUPS, dtype=dtype), labels_of(*GROUPS))

    assert losses.groups.dtype == dtype
    assert {part.dtype for part in losses.parts.values()} == {dtype}
    assert losses.has_loss.dtype == torch.bool


@every_objective
def test_float32_and_float64_agree(config: ObjectiveConfig):
    single, double = (
        run(config, rewards_of(*GROUPS, dtype=dtype), labels_of(*GROUPS))
        for dtype in (torch.float32, torch.float64)
    )

    torch.testing.assert_close(single[0].groups.double(), double[0].groups, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single[1].double(), double[1], rtol=1e-5, atol=1e-6)


@every_objective
@pytest.mark.parametrize("place", [0, 1, len(GROUPS)])
def test_a_filler_changes_nothing_whatever_its_rewards(config: ObjectiveConfig, place: int):
    alone, gradient = run(config, rewards_of(*GROUPS), labels_of(*GROUPS))
    start = len(rewards_of(*GROUPS[:place]))

    def others(values: Tensor, first: int, count: int) -> Tensor:
        return torch.cat((values[:first], values[first + count :]))

    for filling in permutations((math.inf, -math.inf, math.nan, 1e38, 0.0), 3):
        filler = replace(GROUPS[0], rewards=filling, weight=0.0)
        filled = (*GROUPS[:place], filler, *GROUPS[place:])

        losses, with_filler = run(config, rewards_of(*filled), labels_of(*filled))

        assert torch.equal(others(losses.groups, place, 1), alone.groups)
        assert torch.equal(others(losses.has_loss, place, 1), alone.has_loss)
        for name, part in alone.parts.items():
            assert torch.equal(others(losses.parts[name], place, 1), part)
            assert losses.parts[name][place] == 0
        assert losses.groups[place] == 0
        assert not losses.has_loss[place]
        assert torch.equal(others(with_filler, start, 3), gradient)
        assert with_filler[start : start + 3].tolist() == [0.0, 0.0, 0.0]


@every_objective
def test_a_group_does_not_depend_on_its_neighbours(config: ObjectiveConfig):
    objective = build_objective(config)
    together = loss_of(objective, *GROUPS)

    alone = [loss for group in GROUPS for loss in loss_of(objective, group)]

    assert together == pytest.approx(alone, rel=1e-12)


@every_objective
def test_a_reward_that_is_not_a_number_spoils_its_own_group_only(config: ObjectiveConfig):
    first, *others = GROUPS
    broken = replace(first, rewards=(0.5, -1.25, math.nan))

    losses, gradient = run(config, rewards_of(broken, *others), labels_of(broken, *others))
    sound, expected = run(config, rewards_of(*GROUPS), labels_of(*GROUPS))

    assert losses.groups[0].isnan()
    assert torch.equal(losses.groups[1:], sound.groups[1:])
    assert torch.equal(gradient[3:], expected[3:])


@every_objective
def test_groups_without_any_label_have_no_loss(config: ObjectiveConfig):
    bare = (Group(rewards=(1.0, 2.0)), Group(rewards=(3.0,)))

    losses, gradient = run(config, rewards_of(*bare), labels_of(*bare))

    assert losses.groups.tolist() == [0.0, 0.0]
    assert losses.has_loss.tolist() == [False, False]
    assert gradient.tolist() == [0.0, 0.0, 0.0]


@every_objective
def test_no_value_is_read_and_no_shape_depends_on_one(config: ObjectiveConfig):
    """A fake tensor has no values: reading one, or masking by one, raises."""
    mode = FakeTensorMode()
    rewards = mode.from_tensor(rewards_of(*GROUPS, dtype=torch.float32))
    labels = Labels(**{n: mode.from_tensor(v) for n, v in vars(labels_of(*GROUPS)).items()})

    with mode:
        losses = build_objective(config)(rewards, labels)
        (gradient,) = torch.autograd.grad(losses.groups.sum(), rewards)

    assert losses.groups.shape == losses.has_loss.shape == (len(GROUPS),)
    assert gradient.shape == rewards.shape


@every_objective
def test_an_objective_runs_without_values_on_the_meta_device(config: ObjectiveConfig):
    labels = Labels(**{n: v.to("meta") for n, v in vars(labels_of(*GROUPS)).items()})

    losses, gradient = run(config, rewards_of(*GROUPS).to("meta"), labels)

    devices = {t.device.type for t in (losses.groups, losses.has_loss, *losses.parts.values())}
    assert devices == {"meta"}
    assert gradient.device.type == "meta"


@every_objective
def test_an_objective_can_be_copied_to_a_worker(config: ObjectiveConfig):
    objective = build_objective(config)

    assert pickle.loads(pickle.dumps(objective)) == copy.deepcopy(objective) == objective
