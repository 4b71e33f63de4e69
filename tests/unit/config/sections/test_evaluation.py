from typing import Any

import pytest
from given_settings import refusal_of_value


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("every_steps", -1, "at least 0"),
        ("sample_rows", -1, "at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("evaluation", field, value).startswith(rule)
