from typing import Any

import pytest
from given_settings import refusal_of_value

from rm_ray.config.sections.hub import HubConfig


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("repo_id", "no-namespace", "'NAMESPACE/NAME'"),
        ("repo_id", "a/b/c", "'NAMESPACE/NAME'"),
        ("repo_id", "me/a--b", "'NAMESPACE/NAME'"),
        ("revision_prefix", "a/b", "letters, digits"),
        ("patience_s", -1.0, "at least 0 and finite"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("hub", field, value).startswith(rule)


def test_a_repository_has_a_namespace_and_a_name():
    assert HubConfig(repo_id="me/reward-model_1.0").repo_id == "me/reward-model_1.0"
