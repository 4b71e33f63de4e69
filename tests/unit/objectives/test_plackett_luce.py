import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from comparison_groups import (
    Comparison,
    Group,
    gradients_of,
    groups,
    labels_of,
    loss_of,
    losses_of,
    one,
    ranking,
    rewards_of,
)
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.batches.labels import pair_labels
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.objectives.plackett_luce import PlackettLuce

OBJECTIVE = PlackettLuce()


def by_hand(group: Group) -> float:
    """The loss of a group, response by response, without tensors."""
    terms = []
    for i, reward in enumerate(group.rewards):
        beaten = {c.worse for c in group.comparisons if c.better == i and c.probability > 0.5}
        if beaten:
            total = math.exp(reward) + sum(math.exp(group.rewards[j]) for j in beaten)
            terms.append(math.log(total) - reward)
    return sum(terms) / len(terms) if terms else 0.0


@given(st.lists(groups(), min_size=1, max_size=4))
def test_losses_are_those_of_an_explicit_loop(all_groups: list[Group]):
    losses = losses_of(OBJECTIVE, *all_groups)

    for group, loss, has_loss in zip(all_groups, losses.groups, losses.has_loss, strict=True):
        assert math.isclose(loss.item(), by_hand(group), rel_tol=1e-9, abs_tol=1e-9)
        assert has_loss.item() == any(c.probability > 0.5 for c in group.comparisons)
    assert torch.equal(losses.parts["loss"], losses.groups)


@pytest.mark.parametrize("rewards", [(0.3, -1.2, 2.0), (0.3, -1.2, 2.0, 1.0), (0.0, 0.0, 0.0, 0.0)])
def test_rankings_have_probabilities_that_add_up_to_one(rewards: tuple[float, ...]):
    """exp(-loss times places) is the probability of drawing the ranking without replacement."""
    places = len(rewards) - 1
    orders = list(permutations(rewards))

    losses = loss_of(OBJECTIVE, *(ranking(*order) for order in orders))

    assert math.isclose(sum(math.exp(-places * loss) for loss in losses), 1.0, rel_tol=1e-12)
    for order, loss in zip(orders, losses, strict=True):
        worths = [math.exp(reward) for reward in order]
        draws = (worth / sum(worths[k:]) for k, worth in enumerate(worths))
        assert math.isclose(math.exp(-places * loss), math.prod(draws), rel_tol=1e-12)


def test_a_pair_has_the_bits_of_bradley_terry_and_of_its_gradient():
    generator = torch.Generator().manual_seed(0)
    rewards = 3 * torch.randn(1000, generator=generator)
    labels = pair_labels(torch.zeros(500), torch.ones(500))

    results = []
    for objective in (OBJECTIVE, BradleyTerry()):
        leaf = rewards.clone().requires_grad_()
        losses = objective(leaf, labels).groups
        losses.sum().backward()
        results.append((losses, leaf.grad))

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@given(groups(), st.floats(-10, 10, width=32))
def test_only_differences_count(group: Group, shift: float):
    moved = replace(group, rewards=tuple(reward + shift for reward in group.rewards))

    assert math.isclose(one(OBJECTIVE, group), one(OBJECTIVE, moved), rel_tol=1e-9, abs_tol=1e-9)


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

    assert math.isclose(one(OBJECTIVE, group), one(OBJECTIVE, mixed), rel_tol=1e-9, abs_tol=1e-9)


@given(st.lists(groups(), min_size=2, max_size=4))
def test_the_order_of_groups_does_not_count(all_groups: list[Group]):
    assert loss_of(OBJECTIVE, *all_groups) == loss_of(OBJECTIVE, *all_groups[::-1])[::-1]


@given(groups())
def test_a_repeated_comparison_counts_once(group: Group):
    twice = replace(group, comparisons=group.comparisons * 2)

    assert one(OBJECTIVE, twice) == one(OBJECTIVE, group)


def test_ties_rank_neither_response_below_the_other():
    tied = Comparison(better=0, worse=1, probability=0.5)
    losses = losses_of(OBJECTIVE, Group(rewards=(1.0, 0.0), comparisons=(tied,)))

    assert losses.has_loss.tolist() == [False]
    assert losses.groups.tolist() == [0.0]


def test_a_comparison_of_no_weight_does_not_count():
    group = ranking(0.5, 1.0, -1.0)
    labels = labels_of(group)
    weightless = replace(labels, weight=torch.tensor([1.0, 0.0, 0.0]))

    losses = OBJECTIVE(rewards_of(group), weightless)

    assert losses.groups.item() == one(OBJECTIVE, ranking(0.5, 1.0))


def test_rewards_far_apart_neither_overflow_nor_lose_their_gradient():
    group = ranking(-1e4, 0.0, 1e4)

    loss, gradient = one(OBJECTIVE, group), gradients_of(OBJECTIVE, group)

    assert loss == pytest.approx((2e4 + 1e4) / 2)
    assert gradient.tolist() == pytest.approx([-0.5, -0.5, 1.0])


def test_a_tie_far_apart_leaves_every_gradient_finite():
    comparisons = (
        Comparison(better=0, worse=1, probability=0.5),
        Comparison(better=2, worse=0),
    )
    group = Group(rewards=(0.0, 1e4, 1.0), comparisons=comparisons)

    expected = gradients_of(OBJECTIVE, ranking(1.0, 0.0)).tolist()
    assert gradients_of(OBJECTIVE, group).tolist() == [expected[1], 0.0, expected[0]]
