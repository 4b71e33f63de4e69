from typing import Any

import pytest
from given_settings import refusal_of_value

from rm_ray.config.sections.checkpoint import METRICS, CheckpointConfig


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("every_steps", -1, "at least 0"),
        ("keep", 1, "at least 2"),
        ("keep_best_by", "accuracy", "one of eval/rm/accuracy"),
        ("storage_patience_s", -1.0, "at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("checkpoint", field, value).startswith(rule)


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_may_be_ranked_by_any_train_or_eval_metric(metric: str):
    for part in ("eval", "train"):
        name = f"{part}/rm/{metric}"
        assert CheckpointConfig(keep_best_by=name).keep_best_by == name
