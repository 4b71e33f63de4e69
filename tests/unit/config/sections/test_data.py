from typing import Any

import pytest
from given_settings import refusal_of_value

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.data import DataConfig
from rm_ray.errors import InputError


@pytest.mark.parametrize(
    ("train", "given", "held_out"),
    [
        (["builtin:train"], None, ("builtin:test",)),
        (["builtin=0.5", "builtin:train=3"], None, ("builtin:test",)),
        (["mine.jsonl"], None, ()),
        (["builtin:train", "mine.jsonl"], None, ()),
        (["builtin.jsonl"], None, ()),
        (["mine.jsonl"], ["builtin:test"], ("builtin:test",)),
        (["builtin:train"], [], ()),
    ],
)
def test_own_pairs_are_not_evaluated_on_the_built_in_ones_by_default(
    train: list[str], given: list[str] | None, held_out: tuple[str, ...]
):
    assert parse_config({"data": {"train": train, "eval": given}}).data.held_out == held_out


@pytest.mark.parametrize(
    ("columns", "ignored", "field"),
    [
        (("answer=question",), (), "data.columns must be a list of PART=COLUMN"),
        (("question",), (), "data.columns must be"),
        (("prompt=",), (), "data.columns must be"),
        (("prompt=a", "prompt=b"), (), "data.columns must be"),
        (("prompt=a.text",), ("a",), "data.ignore_columns must be disjoint from data.columns"),
    ],
)
def test_unknown_parts_and_parts_mapped_twice_are_refused(
    columns: tuple[str, ...], ignored: tuple[str, ...], field: str
):
    with pytest.raises(InputError, match=field):
        DataConfig(columns=columns, ignore_columns=ignored)


@pytest.mark.parametrize("day", ["28.11.2026", "2026-13-01", "20261128", ""])
def test_a_template_date_is_in_iso_format(day: str):
    with pytest.raises(InputError, match=r"data\.template_date must be a date such as 2026-11-28"):
        DataConfig(template_date=day)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("train", [], "a list of at least one source"),
        ("max_length", 1, "at least 2"),
        ("max_prompt_length", 0, "at least 1"),
        ("max_refused_fraction", 1.5, "between 0 and 1"),
        ("max_refused_fraction", -0.1, "between 0 and 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("data", field, value).startswith(rule)
