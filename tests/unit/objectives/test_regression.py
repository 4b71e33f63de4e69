import math
from pathlib import Path

import pytest
import torch
from comparison_groups import NAN, Group, gradients_of, groups, losses_of, one
from hypothesis import given
from hypothesis import strategies as st
from tables import make_table, ready_step

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.recipe import parse_config
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.objectives.build import build_objective
from rm_ray.objectives.regression import Regression

OBJECTIVE = Regression()


def test_the_loss_is_the_mean_squared_error_of_the_scored_responses():
    assert one(OBJECTIVE, Group(rewards=(1.0, 5.0, -2.0), scores=(3.0, NAN, -1.0))) == 2.5


@given(st.lists(groups(), min_size=1, max_size=4))
def test_losses_are_those_of_an_explicit_loop(all_groups: list[Group]):
    losses = losses_of(OBJECTIVE, *all_groups)

    for group, loss, has_loss in zip(all_groups, losses.groups, losses.has_loss, strict=True):
        pairs = zip(group.rewards, group.scores, strict=True)
        errors = [(reward - score) ** 2 for reward, score in pairs if not math.isnan(score)]
        expected = sum(errors) / len(errors) if errors else 0.0
        assert math.isclose(loss.item(), expected, rel_tol=1e-12, abs_tol=1e-12)
        assert has_loss.item() == bool(errors)
    assert torch.equal(losses.parts["loss"], losses.groups)


def test_a_response_without_a_score_has_no_gradient():
    group = Group(rewards=(1.0, 5.0), scores=(3.0, NAN))

    assert gradients_of(OBJECTIVE, group).tolist() == [-4.0, 0.0]


def test_a_single_response_with_a_score_has_a_loss():
    assert one(OBJECTIVE, Group(rewards=(0.5,), scores=(2.5,))) == pytest.approx(4.0)


def test_attributes_become_the_weighted_scalar_that_rewards_are_compared_with(tmp_path: Path):
    config = parse_config(
        {
            "data": {"score_weights": ["helpfulness=0.65", "verbosity=-0.5"]},
            "objective": {"loss": "regression"},
        }
    )
    attributes = [(4.0, 2.0), (1.0, 3.0), (0.0, 1.0)]
    scores = [{"helpfulness": h, "verbosity": v, "coherence": 9} for h, v in attributes]
    listed = {"prompt": "Why?", "responses": ["So.", "No.", "Perhaps."]}
    by_attribute = {name: [score[name] for score in scores] for name in scores[0]}
    rows = [
        {**listed, "scores": scores},
        {**listed, "scores": by_attribute},
        *({"prompt": "Why?", "response": "So.", **score} for score in scores),
    ]
    tokenizer = load_tokenizer("builtin")
    weights = config.data.score_weights
    table = make_table(tmp_path / "table", rows, tokenizer, score_weights=weights)
    settings = PlanSettings(
        global_batch_size=len(rows), tokens_per_micro_batch=4_096, shuffle=False
    )
    (ready,) = ready_step(table, Plan(lengths=table.lengths, settings=settings), 0, tokenizer)
    rewards = torch.arange(len(ready.groups.labels.response_group), dtype=torch.float64)

    losses = build_objective(config.objective)(rewards, ready.groups.labels).groups

    scalars = [0.65 * helpfulness - 0.5 * verbosity for helpfulness, verbosity in attributes]
    targets = [scalars, scalars, *([scalar] for scalar in scalars)]
    place = 0
    for group, loss in zip(ready.loaded.plan.groups, losses, strict=True):
        mine = targets[group]
        given = rewards[place : place + len(mine)].tolist()
        expected = sum((r - s) ** 2 for r, s in zip(given, mine, strict=True)) / len(mine)
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        place += len(mine)
