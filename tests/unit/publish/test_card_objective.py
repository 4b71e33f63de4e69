from dataclasses import asdict

import pytest

from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.publish.card_objective import (
    TAGS,
    describe_rewards,
    describe_training,
    read_objective,
)

LOG_ODDS = "their difference is the log-odds that the first one is preferred"


def test_an_objective_is_read_from_the_record_and_is_the_default_in_older_ones():
    objective = ObjectiveConfig(ties="davidson", tie_parameter="learned")
    assert read_objective({"objective": asdict(objective)}) == objective
    assert read_objective({}) == ObjectiveConfig()


@pytest.mark.parametrize(
    ("settings", "unit", "said"),
    [
        ({}, "pairs", "with the Bradley-Terry loss on pairs of responses"),
        ({}, "groups", "with the Bradley-Terry loss on comparisons within lists of responses"),
        ({"ties": "davidson"}, "groups", "the Bradley-Terry loss and Davidson's model of ties"),
        ({"ties": "rao_kupper"}, "pairs", "and Rao and Kupper's model of ties (1967) on pairs"),
        ({"loss": "plackett_luce"}, "groups", "with the Plackett-Luce loss"),
        ({"loss": "regression"}, "groups", "to predict the scores of responses"),
    ],
)
def test_the_training_is_named_by_loss_ties_and_unit(settings, unit, said):
    text = describe_training(ObjectiveConfig(**settings), unit)
    assert text.startswith("Trained ") and said in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, f"{LOG_ODDS}. "),
        ({"ties": "drop"}, f"{LOG_ODDS}. "),
        ({"loss": "plackett_luce"}, f"{LOG_ODDS}. "),
        ({"ties": "davidson"}, f"{LOG_ODDS}, unless the two tie. "),
        ({"ties": "rao_kupper"}, "with probability sigmoid(d - eta)"),
        ({"margin": "scale"}, f"{LOG_ODDS}, where comparisons count by their margin. "),
        ({"label_smoothing": 0.1}, f"{LOG_ODDS}, with 0.1 of the labels taken as wrong. "),
    ],
)
def test_a_difference_of_rewards_means_what_the_objective_makes_of_it(settings, said):
    text = describe_rewards(ObjectiveConfig(**settings))
    assert said in text
    assert text.endswith("rewards of different prompts, mean little.")


def test_a_predicted_score_means_something_by_itself():
    text = describe_rewards(ObjectiveConfig(loss="regression"))
    assert LOG_ODDS not in text and "mean little" not in text


def test_every_loss_has_a_tag():
    for loss in ("bradley_terry", "plackett_luce", "regression"):
        assert TAGS[ObjectiveConfig(loss=loss).loss] == loss.replace("_", "-")
