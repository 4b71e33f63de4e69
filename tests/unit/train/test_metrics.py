import math
from typing import Any

import pytest
import torch

from rm_ray.batches.labels import Labels, pair_labels
from rm_ray.data.cache.group_tokens import TokenCounts
from rm_ray.objectives.losses import Losses
from rm_ray.train.metrics import GroupMetrics


def measure(*batches: tuple[list[float], list[float], list[float]]) -> GroupMetrics:
    """Measure pairs; a pair's loss is its margin."""
    metrics = GroupMetrics.zero(torch.device("cpu"))
    for chosen, rejected, weights in batches:
        rewards = torch.tensor([chosen, rejected]).T.reshape(-1)
        labels = pair_labels(torch.zeros(len(chosen)), torch.tensor(weights))
        losses = torch.tensor([c - r for c, r in zip(chosen, rejected, strict=True)])
        tokens = TokenCounts(all=10 * len(chosen), distinct=7 * len(chosen), computed=8)
        metrics.add(rewards, losses_of(losses), labels, tokens=tokens)
    return metrics


def losses_of(losses: torch.Tensor, **more: Any) -> Losses:
    has_loss = torch.ones(len(losses), dtype=torch.bool)
    parts = {"loss": losses}
    return Losses(**{"groups": losses, "has_loss": has_loss, "parts": parts, **more})


def labels_of(*groups: tuple[int, list[tuple[int, int, float, float]]]) -> Labels:
    """Label groups of K responses; a comparison is better, worse, weight and probability."""
    firsts = [sum(size for size, _ in groups[:i]) for i in range(len(groups))]
    rows = [
        (first + better, first + worse, i, weight, probability)
        for i, (first, (_, comparisons)) in enumerate(zip(firsts, groups, strict=True))
        for better, worse, weight, probability in comparisons
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 5
    better, worse, group = (torch.tensor(column, dtype=torch.int64) for column in columns[:3])
    weight, probability = (torch.tensor(column, dtype=torch.float32) for column in columns[3:])
    sizes = torch.tensor([size for size, _ in groups])
    return Labels(
        better=better,
        worse=worse,
        group=group,
        weight=weight,
        margin=torch.zeros(len(rows)),
        probability=probability,
        scores=torch.full((int(sizes.sum()),), torch.nan),
        response_group=torch.repeat_interleave(torch.arange(len(groups)), sizes),
        group_weights=torch.ones(len(groups)),
    )


NO_TOKENS = TokenCounts(all=0, distinct=0, computed=0)


def test_means_are_over_pairs_not_batches():
    metrics = measure(([1.0], [0.0], [1.0]), ([0.0, 2.0, 4.0], [3.0, 3.0, 3.0], [1.0, 1.0, 1.0]))
    means = metrics.means("eval/rm")
    assert metrics.count == 4
    assert metrics.tokens == (40, 28, 16)
    assert means["eval/rm/accuracy"] == 2 / 4
    assert means["eval/rm/chosen_rewards"] == 7 / 4
    assert means["eval/rm/rejected_rewards"] == 9 / 4
    assert means["eval/rm/reward_margin"] == -2 / 4
    assert means["eval/rm/loss"] == -2 / 4


def test_a_group_weighs_1_however_many_comparisons_it_has():
    # Three comparisons, of which those of weights 1/2 and 1/4 are right; and a pair, wrong.
    labels = labels_of(
        (3, [(0, 1, 0.5, 1.0), (0, 2, 0.25, 1.0), (2, 1, 0.25, 1.0)]), (2, [(0, 1, 1.0, 1.0)])
    )
    rewards = torch.tensor([3.0, 1.0, 0.0, 5.0, 6.0])
    metrics = GroupMetrics.zero(torch.device("cpu"))
    metrics.add(rewards, losses_of(torch.tensor([0.25, 0.5])), labels, tokens=NO_TOKENS)

    means = metrics.means("m")

    assert metrics.count == 2
    assert means["m/accuracy"] == (0.5 + 0.25 + 0) / 2
    assert means["m/chosen_rewards"] == (0.5 * 3 + 0.25 * 3 + 0.25 * 0 + 5) / 2
    assert means["m/rejected_rewards"] == (0.5 * 1 + 0.25 * 0 + 0.25 * 1 + 6) / 2
    assert means["m/reward_margin"] == (0.5 * 2 + 0.25 * 3 - 0.25 * 1 - 1) / 2
    assert means["m/loss"] == 0.375


def test_a_labelled_tie_is_half_right_whatever_the_rewards():
    labels = labels_of((2, [(0, 1, 1.0, 0.5)]), (2, [(1, 0, 1.0, 0.5)]), (2, [(0, 1, 1.0, 0.75)]))
    rewards = torch.tensor([9.0, 0.0, 9.0, 0.0, 9.0, 0.0])
    metrics = GroupMetrics.zero(torch.device("cpu"))
    metrics.add(rewards, losses_of(torch.zeros(3)), labels, tokens=NO_TOKENS)

    assert metrics.means("m")["m/accuracy"] == (0.5 + 0.5 + 1) / 3
    assert metrics.means("m")["m/ties"] == 0  # of rewards, of which none are equal


def test_groups_without_comparisons_count_but_not_in_the_means_over_comparisons():
    metrics = GroupMetrics.zero(torch.device("cpu"))
    labels = labels_of((1, []), (2, [(0, 1, 1.0, 1.0)]))
    losses = torch.tensor([0.0, 3.0])
    metrics.add(
        torch.tensor([9.0, 1.0, 0.0]),
        losses_of(losses, has_loss=torch.tensor([False, True])),
        labels,
        tokens=NO_TOKENS,
    )

    means = metrics.means("m")

    assert metrics.count == 2
    assert (means["m/loss"], means["m/accuracy"], means["m/chosen_rewards"]) == (3.0, 1.0, 1.0)


def test_figures_that_nothing_was_counted_for_are_left_out():
    metrics = GroupMetrics.zero(torch.device("cpu"))
    assert metrics.means("m") == {}

    labels = labels_of((1, []), (3, []))  # scored, for regression
    metrics.add(torch.zeros(4), losses_of(torch.tensor([1.0, 2.0])), labels, tokens=NO_TOKENS)
    assert metrics.means("m") == {"m/loss": 1.5}


def test_every_part_of_the_objective_has_its_mean():
    metrics = GroupMetrics.zero(torch.device("cpu"), ("loss", "centering"))
    parts = {"loss": torch.tensor([1.0, 2.0]), "centering": torch.tensor([0.25, 0.75])}
    labels = labels_of((1, []), (1, []))
    metrics.add(
        torch.zeros(2), losses_of(torch.tensor([1.25, 2.75]), parts=parts), labels, tokens=NO_TOKENS
    )

    assert metrics.means("m") == {"m/loss": 1.5, "m/centering": 0.5}


def test_a_tie_is_half_right_and_reported():
    means = measure(([1.0, 1.0], [1.0, 0.0], [1.0, 1.0])).means("m")
    assert means["m/accuracy"] == 0.75
    assert means["m/ties"] == 0.5


def test_a_pair_of_weight_zero_does_not_count_even_if_not_finite():
    with_filler = measure(([1.0, math.nan], [0.0, 2.0], [1.0, 0.0]))
    alone = measure(([1.0], [0.0], [1.0]))
    assert with_filler.count == 1
    assert with_filler.means("m") == alone.means("m")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_shows_in_the_sums(value):
    assert not torch.isfinite(measure(([value], [0.0], [1.0])).sums).all()
