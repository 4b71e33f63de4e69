import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from comparison_groups import (
    Comparison,
    Group,
    gradients_of,
    groups,
    loss_of,
    losses_of,
    one,
    ranking,
    sigmoid,
)
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.labels import pair_labels
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.objectives.outcomes import DavidsonOutcomes, RaoKupperOutcomes

PLAIN = BradleyTerry()


def pair(chosen: float, rejected: float, *, margin: float = 0.0, probability: float = 1.0) -> Group:
    comparison = Comparison(better=0, worse=1, margin=margin, probability=probability)
    return Group(rewards=(chosen, rejected), comparisons=(comparison,))


def by_hand(objective: BradleyTerry, group: Group) -> float:
    """The loss of a group, comparison by comparison, without tensors."""
    kept = [c for c in group.normalised if not (objective.drop_ties and c.probability == 0.5)]
    total, weights = 0.0, sum(c.weight for c in kept)
    for c in kept:
        lead = group.rewards[c.better] - group.rewards[c.worse]
        margin = c.margin if objective.margin == "add" and c.probability == 1 else 0.0
        p, e, n = c.probability, objective.label_smoothing, objective.noise
        p = (1 - e) * p + e * (1 - p)
        p = (p - n) / (1 - 2 * n)
        won, lost = (-math.log(sigmoid(x)) for x in (lead - margin, -lead - margin))
        loss = p * won + (1 - p) * lost
        total += c.weight / weights * loss * (c.margin if objective.margin == "scale" else 1.0)
    return total


def test_the_loss_of_equal_rewards_is_log_two():
    assert one(PLAIN, pair(3.0, 3.0)) == math.log(2)


def test_a_group_without_comparisons_has_no_loss():
    losses = losses_of(PLAIN, Group(rewards=(1.0,)), pair(1.0, 0.0), Group(rewards=(0.0, 2.0)))

    assert losses.has_loss.tolist() == [False, True, False]
    assert losses.groups.tolist()[0::2] == [0.0, 0.0]
    assert torch.equal(losses.parts["loss"], losses.groups)
    assert list(losses.parts) == ["loss"]


@given(st.lists(groups(), min_size=1, max_size=4))
@pytest.mark.parametrize(
    "objective",
    [
        PLAIN,
        BradleyTerry(margin="scale"),
        BradleyTerry(margin="ignore"),
        BradleyTerry(drop_ties=True),
        BradleyTerry(drop_ties=True, margin="scale"),
        BradleyTerry(label_smoothing=0.1),
        BradleyTerry(noise=0.25),
    ],
)
def test_losses_are_those_of_an_explicit_loop(objective: BradleyTerry, all_groups: list[Group]):
    losses = losses_of(objective, *all_groups)

    for group, loss, has_loss in zip(all_groups, losses.groups, losses.has_loss, strict=True):
        assert math.isclose(loss.item(), by_hand(objective, group), rel_tol=1e-6, abs_tol=1e-6)
        weighs = [
            c
            for c in group.comparisons
            if not (objective.drop_ties and c.probability == 0.5)
            and not (objective.margin == "scale" and c.margin == 0)
        ]
        assert has_loss.item() == bool(weighs)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=9))
def test_a_full_list_has_the_mean_of_its_pairs(rewards: list[float]):
    """InstructGPT's eq. 1: -1/C(K, 2) times the sum of log sigmoid(r_w - r_l)."""
    pairs = [-math.log(sigmoid(w - v)) for w, v in combinations(rewards, 2)]

    expected = sum(pairs) / math.comb(len(rewards), 2)
    assert math.isclose(one(PLAIN, ranking(*rewards)), expected, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_plain_pairs_have_the_bits_of_the_pairwise_loss_and_gradient(dtype, spread):
    """Beyond a lead of about 100, float32 losses and gradients are exact zeros."""
    count = 501
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = spread * torch.randn(2, count, generator=generator, dtype=dtype)
    margins = torch.randn(count, generator=generator).relu()
    weights = (torch.rand(count, generator=generator) < 0.9).float()

    sides = (chosen.requires_grad_(), rejected.requires_grad_())
    expected = -F.logsigmoid(chosen - rejected - margins)
    (expected * weights).sum().mul(0.125).backward()
    rewards = torch.stack(sides, dim=1).flatten().detach().requires_grad_()
    losses = PLAIN(rewards, pair_labels(margins, weights))
    (losses.groups * weights).sum().mul(0.125).backward()

    assert losses.groups.dtype == dtype
    assert torch.equal(losses.groups, torch.where(weights > 0, expected, 0))
    assert torch.equal(losses.has_loss, weights > 0)
    assert rewards.grad is not None
    assert torch.equal(rewards.grad, torch.stack([s.grad for s in sides], dim=1).flatten())


def test_an_infinite_lead_has_the_loss_of_the_pairwise_loss_too():
    chosen = torch.tensor([math.inf, 3e38, -3e38, math.nan])
    rejected = torch.tensor([0.0, -3e38, 3e38, 0.0])
    labels = pair_labels(torch.zeros(4), torch.ones(4))

    losses = PLAIN(torch.stack((chosen, rejected), dim=1).flatten(), labels).groups

    expected = -F.logsigmoid(chosen - rejected)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0, equal_nan=True)


def test_half_precision_rewards_are_compared_in_float32():
    rewards = torch.tensor([8.0, 8.0625], dtype=torch.bfloat16)

    losses = PLAIN(rewards, pair_labels(torch.zeros(1), torch.ones(1)))

    assert losses.groups.dtype == torch.float32
    assert losses.groups.item() == pytest.approx(-math.log(sigmoid(-0.0625)), rel=1e-6)


@given(groups(probabilities=(1.0,)))
def test_the_probabilities_of_a_comparison_and_its_swap_add_up_to_one(group: Group):
    for c in group.comparisons:
        losses = loss_of(
            BradleyTerry(margin="ignore"),
            replace(group, comparisons=(c,)),
            replace(group, comparisons=(replace(c, better=c.worse, worse=c.better),)),
        )
        assert math.isclose(sum(math.exp(-loss) for loss in losses), 1.0, rel_tol=1e-9)


@given(groups(), st.floats(-10, 10, width=32))
def test_only_differences_count(group: Group, shift: float):
    moved = replace(group, rewards=tuple(reward + shift for reward in group.rewards))

    assert math.isclose(one(PLAIN, group), one(PLAIN, moved), rel_tol=1e-9, abs_tol=1e-9)


@given(groups(), st.randoms())
def test_the_order_of_responses_and_comparisons_does_not_count(group: Group, random):
    order = list(range(len(group.rewards)))
    random.shuffle(order)
    comparisons = [
        replace(c, better=order.index(c.better), worse=order.index(c.worse))
        for c in group.comparisons
    ]
    random.shuffle(comparisons)
    mixed = Group(rewards=tuple(group.rewards[i] for i in order), comparisons=tuple(comparisons))

    assert math.isclose(one(PLAIN, group), one(PLAIN, mixed), rel_tol=1e-6, abs_tol=1e-9)


@given(st.lists(groups(), min_size=2, max_size=4))
def test_the_order_of_groups_does_not_count(all_groups: list[Group]):
    assert loss_of(PLAIN, *all_groups) == loss_of(PLAIN, *all_groups[::-1])[::-1]


@given(groups())
def test_dropped_ties_are_as_if_they_were_not_in_the_data(group: Group):
    decided = tuple(c for c in group.comparisons if c.probability != 0.5)

    dropped = losses_of(BradleyTerry(drop_ties=True), group)
    without = losses_of(PLAIN, replace(group, comparisons=decided))

    torch.testing.assert_close(dropped.groups, without.groups, rtol=1e-6, atol=1e-9)
    assert torch.equal(dropped.has_loss, without.has_loss)


def test_a_margin_that_scales_multiplies_the_loss():
    scaled = BradleyTerry(margin="scale")

    assert one(scaled, pair(1.0, 0.5, margin=3.0)) == pytest.approx(3 * one(PLAIN, pair(1.0, 0.5)))


def test_a_comparison_without_a_positive_margin_has_no_scaled_loss():
    losses = losses_of(
        BradleyTerry(margin="scale"), pair(1.0, 0.0), pair(1.0, 0.0, margin=-2.0),
        pair(1.0, 0.0, margin=0.5),
    )  # fmt: skip

    assert losses.has_loss.tolist() == [False, False, True]
    assert losses.groups.tolist()[:2] == [0.0, 0.0]


@pytest.mark.parametrize("outcomes", [DavidsonOutcomes(nu=0.5), RaoKupperOutcomes(eta=0.5)])
def test_the_model_of_ties_decides_the_losses_of_wins_and_ties(outcomes):
    objective = BradleyTerry(outcomes=outcomes, margin="ignore")
    lead = torch.tensor(0.75, dtype=torch.float64)

    win, tie = loss_of(objective, pair(1.0, 0.25), pair(1.0, 0.25, probability=0.5))

    assert win == pytest.approx(outcomes.win(lead).item(), rel=1e-12)
    assert tie == pytest.approx(outcomes.tie(lead).item(), rel=1e-12)


def test_smoothing_pulls_back_a_lead_that_is_larger_than_its_log_odds():
    smoothed = BradleyTerry(label_smoothing=0.1)
    best = math.log(0.9 / 0.1)

    assert gradients_of(smoothed, pair(best, 0.0)).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert gradients_of(smoothed, pair(best + 1, 0.0))[0] > 0
    assert gradients_of(PLAIN, pair(best + 1, 0.0))[0] < 0
