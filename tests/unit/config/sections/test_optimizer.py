from typing import Any

import pytest
from given_settings import refusal_of, refusal_of_value


def test_an_infinite_learning_rate_is_refused():
    settings = {"optimizer": {"learning_rate": float("inf")}}

    assert "optimizer.learning_rate must be " in refusal_of(settings)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("learning_rate", 0, "above 0 and finite"),
        ("learning_rate", float("nan"), "above 0 and finite"),
        ("betas", [0.9, 1.0], "two numbers of at least 0"),
        ("eps", 0, "above 0 and finite"),
        ("weight_decay", -0.1, "at least 0 and finite"),
        ("warmup_steps", -1, "at least 0 and finite"),
        ("max_grad_norm", -1, "at least 0 and finite"),
        ("max_skipped_steps", -1, "at least 0"),
        ("epochs", 0, "at least 1"),
        ("max_episodes", 0, "at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("optimizer", field, value).startswith(rule)


def test_a_constant_schedule_has_no_warmup():
    message = refusal_of({"optimizer": {"schedule": "constant", "warmup_steps": 3}})

    assert "optimizer.warmup_steps must be 0" in message
    assert "constant_with_warmup" in message
