from typing import Any

import pytest
from given_settings import refusal_of_value

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.data import DataConfig
from rm_ray.errors import InputError


@pytest.mark.parametrize(
    ("train", "given", "held_out"),
    [
        (["builtin:train"], None, ("builtin:test",)),
        (["builtin=0.5", "builtin:train=3"], None, ("builtin:test",)),
        (["builtin:lists"], None, ("builtin:truth",)),
        (["builtin:pairs=0.5", " builtin:soft=40"], None, ("builtin:truth",)),
        (["builtin:soft", "builtin"], None, ("builtin:truth", "builtin:test")),
        (["builtin:soft", "mine.jsonl"], None, ()),
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
        ("max_responses", 1, "at least 2"),
        ("score_weights", ["a=b"], "a list of ATTRIBUTE=WEIGHT"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(field: str, value: Any, rule: str):
    assert refusal_of_value("data", field, value).startswith(rule)


def test_cut_prompts_are_not_grouped():
    with pytest.raises(InputError, match=r"data\.group_by_prompt must be false where .*truncate"):
        DataConfig(group_by_prompt=True, over_length="truncate")
    assert DataConfig(group_by_prompt=True).group_by_prompt


def test_the_rules_hold_all_that_says_how_a_row_is_read():
    config = DataConfig(
        columns=("prompt=question",),
        ignore_columns=("id",),
        form="documented",
        max_responses=9,
        score_weights=("helpfulness=0.65",),
    )

    assert config.rules == ColumnRules(
        columns={"prompt": "question"},
        ignore=("id",),
        form="documented",
        max_responses=9,
        score_weights=(("helpfulness", 0.65),),
    )
    assert DataConfig().rules == NO_RULES


def test_files_of_excluded_rows_may_be_one_text_and_have_no_password():
    assert parse_config({"data": {"exclude": "a.jsonl"}}).data.exclude == ("a.jsonl",)
    with pytest.raises(InputError, match=r"data\.exclude must be a list of files, got ' '"):
        DataConfig(exclude=(" ",))
    with pytest.raises(InputError, match=r"data\.exclude"):
        DataConfig(exclude=("https://me:secret@example.com/a.jsonl",))


def test_an_unknown_form_is_refused():
    with pytest.raises(InputError, match=r"data\.form.*'nectar'"):
        parse_config({"data": {"form": "nektar"}})
