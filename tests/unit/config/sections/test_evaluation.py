from typing import Any

import pytest
from given_settings import refusal_of, refusal_of_value

from rm_ray.config.sections.evaluation import EvaluationConfig


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("every_steps", -1, "at least 0"),
        ("sample_rows", -1, "at least 0"),
        ("cpus", 0, "at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("evaluation", field, value).startswith(rule)


@pytest.mark.parametrize(
    ("sets", "rule"),
    [
        (["a.jsonl"], "a list of NAME=SOURCE"),
        (["=a.jsonl"], "a list of NAME=SOURCE"),
        (["chat="], "a list of NAME=SOURCE"),
        (["Chat=a.jsonl"], "a list of NAME=SOURCE"),
        (["a/b=a.jsonl"], "a list of NAME=SOURCE"),
        (["rm=a.jsonl"], "other names than 'rm'"),
        (["a-b=a.jsonl", "a_b=b.jsonl"], "names that differ in more than '_' and '-'"),
    ],
)
def test_a_set_without_a_usable_name_or_source_is_refused(sets: list[str], rule: str):
    message = refusal_of({"evaluation": {"sets": sets}})
    assert f"evaluation.sets must be {rule}" in message


def test_a_password_in_a_source_is_refused_and_not_repeated():
    message = refusal_of({"evaluation": {"sets": ["chat=https://me:secret@host/a.jsonl"]}})
    assert "evaluation.sets must not contain a password" in message
    assert "secret" not in message


def test_a_name_has_all_its_sources_in_order():
    sets = ("b=x.jsonl", "a=y.jsonl=0.5", "b=builtin:test=4")
    assert EvaluationConfig(sets=sets).named_sets == {
        "b": ("x.jsonl", "builtin:test=4"), "a": ("y.jsonl=0.5",),
    }  # fmt: skip
    assert EvaluationConfig().named_sets == {}
