from typing import Any

import pytest
from given_settings import refusal_of_value

from rm_ray.config.sections.batch import BatchConfig
from rm_ray.errors import InputError


def test_a_dataclass_built_directly_is_checked_too():
    with pytest.raises(InputError, match=r"batch\.global_batch_size must be at least 1, got 0"):
        BatchConfig(global_batch_size=0)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("global_batch_size", 0, "at least 1"),
        ("tokens_per_micro_batch", 0, "at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("batch", field, value).startswith(rule)
