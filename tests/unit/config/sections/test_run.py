from typing import Any

import pytest
from given_settings import refusal_of, refusal_of_value


@pytest.mark.parametrize("name", ["mlflow.db", "token_cache", "mlflow_artifacts", "evaluations"])
def test_reserved_names_are_refused(name: str):
    assert f"got '{name}'" in refusal_of({"run": {"name": name}})


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("name", "", "letters"),
        ("name", "a/b", "letters"),
        ("name", ".hidden", "letters"),
        ("storage_path", "", "a path or a URI"),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", 2**32, "from 0 to 4294967295"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("run", field, value).startswith(rule)
