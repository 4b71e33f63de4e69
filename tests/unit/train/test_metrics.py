import math

import pytest
import torch

from rm_ray.data.cache.pair_tokens import TokenCounts
from rm_ray.train.metrics import PairMetrics


def measure(*batches: tuple[list[float], list[float], list[float]]) -> PairMetrics:
    metrics = PairMetrics.zero(torch.device("cpu"))
    for chosen, rejected, weights in batches:
        rewards = torch.tensor([*chosen, *rejected])
        losses = torch.tensor([c - r for c, r in zip(chosen, rejected, strict=True)])
        tokens = TokenCounts(both=10 * len(chosen), distinct=7 * len(chosen), computed=8)
        metrics.add(rewards, losses, torch.tensor(weights), tokens=tokens)
    return metrics


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
