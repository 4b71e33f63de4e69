from typing import Any, get_args

import pytest
from published_rows import ROWS, A, B, Q

from rm_ray.config.column_rules import NO_RULES, ColumnRules, Form
from rm_ray.data.preferences.group_reading import has_preference, read_group
from rm_ray.data.published.forms import FORMS, find_form
from rm_ray.data.rows.column_readings import sum_up
from rm_ray.data.rows.refusals import Reason, RefusedError

AS_DOCUMENTED = {"skywork", "tulu3"}
"""Forms whose columns are those of any pair."""

NOT_USED = {"helpsteer2": ("correctness", "coherence", "complexity", "verbosity")}
"""Columns of a form that are only used if the settings name them."""


def test_the_settings_name_every_form():
    assert set(FORMS) == set(ROWS) == set(get_args(Form)) - {"auto", "documented"}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_published_schema_is_found_by_its_columns(name: str):
    row = ROWS[name]
    group, reading = read_group(row)

    assert reading.form == ("" if name in AS_DOCUMENTED else name)
    assert group == read_group(row, "", ColumnRules(form=FORMS[name].name))[0]
    assert has_preference(row)


@pytest.mark.parametrize("name", ROWS)
def test_every_published_column_is_read_or_known_to_be_harmless(name: str):
    row = ROWS[name]
    rules = ColumnRules(form=FORMS[name].name)

    group, reading = read_group(row, "here", rules)

    assert (reading.left, reading.lost, reading.has_prompt) == (NOT_USED.get(name, ()), (), True)
    assert reading.form == name
    read = {n for names in reading.used.values() for n in names.replace(".", "' and '").split("' ")}
    read |= set(reading.left)
    assert {n.removeprefix("and '") for n in read} >= set(FORMS[name].columns) - {
        "num_correct", "num_incorrect", "total_completions", "num_responses"
    }  # fmt: skip
    assert group.responses[0]["content"] == A
    if "source" in reading.used:
        assert group.source == row["source"]


@pytest.mark.parametrize("name", ROWS)
def test_a_column_that_the_form_does_not_know_is_reported_as_ever(name: str):
    rules = ColumnRules(form=FORMS[name].name)
    row = {**ROWS[name], "images": "An image, and what it shows.", "mystery": "Whatever."}

    reading = read_group(row, "", rules)[1]

    assert reading.lost == ("images",)
    assert set(reading.left) == {"images", "mystery", *NOT_USED.get(name, ())}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_without_one_of_the_columns_is_refused_with_the_name_of_the_form(name: str):
    rules = ColumnRules(form=FORMS[name].name)
    for column in FORMS[name].columns:
        row = {other: value for other, value in ROWS[name].items() if other != column}
        with pytest.raises(RefusedError) as caught:
            read_group(row, "", rules)
        assert caught.value.reason == Reason.MISSING_FIELD
        assert column in caught.value.detail
        assert not has_preference(row, rules)


@pytest.mark.parametrize("name", ROWS)
def test_null_responses_and_labels_are_refused(name: str):
    rules = ColumnRules(form=FORMS[name].name)
    counted = {"num_correct", "num_incorrect", "total_completions", "num_responses"}
    counted |= set(NOT_USED.get(name, ()))
    for column in set(FORMS[name].columns) - counted - {"prompt", "question", "instruction"}:
        if (name, column) == ("helpsteer3", "context") or (name, column) == ("shp", "history"):
            continue
        with pytest.raises(RefusedError):
            read_group({**ROWS[name], column: None}, "", rules)


def test_the_line_says_which_form_was_found_and_what_became_of_its_columns():
    row = ROWS["helpsteer3"]

    (line,) = [sum_up("here", {read_group(row)[1].to_json(): 3}).describe()]

    assert line == (
        "published form 'helpsteer3'; chosen from 'response1' and 'response2', margin from "
        "'overall_preference', preference from 'overall_preference', prompt from 'context', "
        "rejected from 'response1' and 'response2'"
    )


def test_no_form_is_found_where_columns_are_mapped_ignored_or_the_rows_are_our_own():
    row = ROWS["helpsteer3"]
    names = tuple(row)
    mapped = ColumnRules.of(["prompt=context", "chosen=response1", "rejected=response2"], [])

    assert find_form(names, NO_RULES) is FORMS["helpsteer3"]
    assert find_form(names, ColumnRules(columns={"source": "domain"})) is FORMS["helpsteer3"]
    assert find_form(names, mapped) is None
    assert find_form(names, ColumnRules(ignore=("overall_preference",))) is None
    assert find_form((*names, "chosen", "rejected"), NO_RULES) is None
    assert find_form(names, ColumnRules(form="documented")) is None
    assert find_form(("prompt", "chosen", "rejected", "source"), NO_RULES) is None


def test_a_column_may_still_be_mapped_beside_a_form():
    rules = ColumnRules.of(["source=domain"], [])
    row = {**ROWS["shp"], "area": "cooking"}

    group, reading = read_group(row, "", ColumnRules.of(["source=area"], []))

    assert (group.source, reading.form, reading.used["source"]) == ("cooking", "shp", "area")
    assert read_group(ROWS["shp"], "", rules)[1].form == "shp"


@pytest.mark.parametrize(
    ("name", "part", "column", "field", "value"),
    [
        ("helpsteer3", "source", "domain", "source", "general"),
        ("reward_bench_2", "source", "subset", "source", ROWS["reward_bench_2"]["subset"]),
        ("ultrafeedback", "source", "models.0", "source", "gpt-4"),
        (
            "ultrafeedback",
            "prompt",
            "completions.0.model",
            "prompt",
            [{"role": "user", "content": "gpt-4"}],
        ),
    ],
)
def test_a_column_of_the_form_may_be_mapped_and_wins(
    name: str, part: str, column: str, field: str, value: Any
):
    rules = ColumnRules(columns={part: column})
    group, reading = read_group(ROWS[name], "", rules)

    assert getattr(group, field) == value
    assert reading.used[part] == column
    assert reading.form == name
    assert set(reading.left) <= {"source"}


def test_a_mapped_margin_wins():
    rules = ColumnRules(columns={"margin": "score_ratio"})
    group, _ = read_group({**ROWS["shp"], "score_ratio": 3.0}, "", rules)
    assert [c.margin for c in group.comparisons] == [3.0]


def refuse(row: dict[str, Any], rules: ColumnRules) -> str:
    with pytest.raises(RefusedError) as caught:
        read_group(row, "", rules)
    assert caught.value.reason == Reason.BAD_FORM
    return caught.value.detail


def test_rules_that_would_break_a_form_are_refused_with_its_name():
    row = ROWS["helpsteer3"]
    form: Form = "helpsteer3"

    sides = ColumnRules(columns={"chosen": "response1"}, form=form)
    assert "form 'helpsteer3' makes chosen, which data.columns maps" in refuse(row, sides)
    ignored = ColumnRules(ignore=("context",), form=form)
    assert "form 'helpsteer3' needs 'context', which data.ignore_columns" in refuse(row, ignored)
    twice = ColumnRules(columns={"prompt": "response"})
    assert "'helpsteer2' reads 'response', which data.columns" in refuse(ROWS["helpsteer2"], twice)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("ultrafeedback", "prompt", "What is it then?"),
        ("ultrafeedback", "scores", [1, 2, 3]),
        ("pku_saferlhf", "preference", 0.9),
        ("helpsteer3", "margin", 7.0),
        ("nectar", "ranks", [3, 2, 1]),
    ],
)
def test_a_column_that_the_form_makes_too_is_refused_unless_one_of_them_is_chosen(
    name: str, column: str, value: Any
):
    row = {**ROWS[name], column: value}

    assert f"the row has a column '{column}' too" in refuse(row, NO_RULES)
    ignored = ColumnRules(ignore=(column,))
    assert read_group(row, "", ignored)[0] == read_group(ROWS[name])[0]
    assert read_group({**row, column: None})[0] == read_group(ROWS[name])[0]
    if column != "preference":
        mapped = read_group(row, "", ColumnRules(columns={column: column}))
        assert mapped[0] != read_group(ROWS[name])[0]
        assert mapped[1].used[column] == column


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"helpsteer2"}))
def test_the_better_response_beats_the_worse_one(name: str):
    group, _ = read_group(ROWS[name], "", ColumnRules(form=FORMS[name].name))

    said = [message["content"] for message in group.responses]
    wins = {(said[c.better], said[c.worse]) for c in group.comparisons if not c.is_tie}
    assert (A, B) in wins
    assert (B, A) not in wins
    if name != "summarize_from_feedback":
        assert group.prompt == [{"role": "user", "content": Q}]
