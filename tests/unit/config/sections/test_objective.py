from typing import Any

import pytest
import torch
from comparison_groups import Comparison, Group, labels_of, ranking, rewards_of
from given_settings import refusal_of, refusal_of_value

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.objectives.build import build_objective


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("label_smoothing", -0.1, "at least 0 and below 0.5"),
        ("label_smoothing", 0.5, "at least 0 and below 0.5"),
        ("noise", 0.5, "at least 0 and below 0.5"),
        ("noise", float("nan"), "at least 0 and below 0.5"),
        ("centering", -1, "at least 0 and finite"),
        ("centering", float("inf"), "at least 0 and finite"),
        ("tie_parameter", 0.0, "above 0 and finite"),
        ("tie_parameter", float("inf"), "above 0 and finite"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("objective", field, value).startswith(rule)


@pytest.mark.parametrize("loss", ["plackett_luce", "regression"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("margin", "add"),
        ("margin", "scale"),
        ("ties", "drop"),
        ("ties", "davidson"),
        ("label_smoothing", 0.1),
        ("noise", 0.1),
    ],
)
def test_what_only_comparisons_have_is_refused_with_another_loss(loss: str, field: str, value: Any):
    message = refusal_of({"objective": {"loss": loss, field: value}})

    assert f"objective.{field} must be " in message
    assert f"with objective.loss '{loss}', which has no use for it" in message
    assert message.endswith(f"got {value!r}")


def test_scores_need_no_centering():
    message = refusal_of({"objective": {"loss": "regression", "centering": 0.01}})

    assert "objective.centering must be 0 with objective.loss 'regression'" in message
    assert parse_config({"objective": {"loss": "plackett_luce", "centering": 0.01}})


def test_smoothing_and_noise_exclude_each_other():
    message = refusal_of({"objective": {"label_smoothing": 0.1, "noise": 0.2}})

    assert "objective.noise must be 0 with objective.label_smoothing" in message
    assert message.endswith("got 0.2")


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_a_model_of_ties_takes_no_margin(ties: str):
    for margin, why in (("add", "add up to 1"), ("scale", "no tie would have a loss")):
        message = refusal_of({"objective": {"ties": ties, "margin": margin}})
        assert f"objective.margin must be 'ignore' with objective.ties '{ties}': " in message
        assert why in message
    for margin in ("ignore", None):
        assert parse_config({"objective": {"ties": ties, "margin": margin}}).objective.ties == ties


@pytest.mark.parametrize(
    ("ties", "least", "most"), [("davidson", 1e-6, 1e3), ("rao_kupper", 1e-6, 20.0)]
)
def test_a_tie_parameter_leaves_every_outcome_a_probability(ties: str, least: float, most: float):
    for parameter in (least, most, "learned", None):
        parse_config({"objective": {"ties": ties, "tie_parameter": parameter}})
    for parameter in (least / 1.01, most * 1.01, 1e-50):
        message = refusal_of({"objective": {"ties": ties, "tie_parameter": parameter}})
        rule = f"must be from {least:g} to {most:g}, or 'learned', with objective.ties '{ties}'"
        assert rule in message
    tie = Group(rewards=(0.0, 0.0), comparisons=(Comparison(better=0, worse=1, probability=0.5),))
    for parameter in (least, most):
        objective = build_objective(ObjectiveConfig(ties=ties, tie_parameter=parameter))
        for group in (tie, ranking(1.0, 0.0), ranking(0.0, 1.0)):
            rewards = rewards_of(group, dtype=torch.float32)
            losses = objective(rewards, labels_of(group))
            losses.groups.sum().backward()
            assert 0 <= losses.groups.item() < 40 and rewards.grad.isfinite().all()


@pytest.mark.parametrize("ties", ["half", "drop"])
def test_only_models_of_ties_have_a_parameter(ties: str):
    message = refusal_of({"objective": {"ties": ties, "tie_parameter": 1.0}})

    assert f"objective.tie_parameter must be none with objective.ties '{ties}'" in message


@pytest.mark.parametrize(
    ("settings", "use"),
    [
        ({}, "add"),
        ({"ties": "drop"}, "add"),
        ({"ties": "davidson"}, "ignore"),
        ({"ties": "rao_kupper"}, "ignore"),
        ({"loss": "plackett_luce"}, "ignore"),
        ({"loss": "regression"}, "ignore"),
        ({"margin": "scale"}, "scale"),
        ({"margin": "ignore"}, "ignore"),
    ],
)
def test_margins_are_added_by_default_where_that_means_something(
    settings: dict[str, Any], use: str
):
    assert ObjectiveConfig(**settings).margin_use == use
