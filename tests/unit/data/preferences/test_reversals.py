import json
from typing import Any

import pytest
from pair_rows import REPLIES, Row

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.preferences.group_reading import read_group

BELOW = "'score_chosen' is below 'score_rejected'"
RATED: Row = {"prompt": "Why?", **REPLIES, "score_chosen": 3, "score_rejected": 7.5}


def reversal(row: Row, rules: ColumnRules = NO_RULES) -> str:
    return read_group({"prompt": "Why?", **REPLIES, **row}, rules=rules)[1].reversal


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"score_chosen": 3, "score_rejected": 7.5}, BELOW),
        ({"chosen-rating": 1.0, "rejected-rating": 2}, "'chosen-rating' is below"),
        ({"chosen_avg_rating": 1.0, "rejected_avg_rating": 2}, "'chosen_avg_rating' is below"),
        ({"winner": "rejected"}, "'winner' is 'rejected'"),
        ({"winner": "No."}, "'winner' is what 'rejected' is"),
        (
            {"winner_model": "b", "chosen_model": "a", "rejected_model": "b"},
            "'winner_model' is what 'rejected_model' is",
        ),
    ],
)
def test_a_column_that_says_the_reverse_of_the_labels_is_found(columns: Row, found: str):
    assert reversal(columns).startswith(found)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"score_chosen": 7, "score_rejected": 3},
        {"score_chosen": 5, "score_rejected": 5},
        {"score_chosen": None, "score_rejected": 5},
        {"score_chosen": "3", "score_rejected": "5"},
        {"score_chosen": float("nan"), "score_rejected": 5},
        {"score_rejected": 5},
        {"chosen_toxicity_score": 0.1, "rejected_toxicity_score": 0.9},
        {"chosen_length": 1, "rejected_length": 2},
        {"winner": "chosen"},
        {"winner": "a"},
        {"winner": 1},
        {"winner": "a", "chosen_model": "a", "rejected_model": "a"},
    ],
)
def test_columns_that_agree_or_say_nothing_are_no_reversal(columns: Row):
    assert reversal(columns) == ""


def test_the_label_of_the_row_itself_decides_which_side_is_the_better_one():
    assert reversal({**RATED, "preference": 0.8}) == BELOW
    assert reversal({**RATED, "preference": 0.5}) == reversal({**RATED, "tie": True}) == ""
    assert reversal({**RATED, "tie": False}) == BELOW
    assert reversal({**RATED, "preference": 0.2}) == ""
    right = {"score_chosen": 7, "score_rejected": 3, "preference": 0.2}
    assert reversal(right) == "'score_rejected' is below 'score_chosen'"


def test_sides_that_are_mapped_to_each_other_are_compared_the_other_way_round():
    rules = ColumnRules.of(["chosen=rejected", "rejected=chosen"], [])
    assert reversal(RATED, rules) == ""
    right = {"score_chosen": 7, "score_rejected": 3, "winner": "chosen"}
    assert reversal(right, rules) == "'score_rejected' is below 'score_chosen'"


def test_an_ignored_column_says_nothing():
    assert reversal(RATED, ColumnRules(ignore=("score_chosen",))) == ""


def test_columns_that_a_published_form_leaves_out_are_compared_too():
    rated: dict[str, Any] = {"chosen_rating": 2, "rejected_rating": 4}
    sides = {name: [{"role": "user", "content": "Why?"}, answer] for name, answer in (
        ("chosen", {"role": "assistant", "content": "So."}),
        ("rejected", {"role": "assistant", "content": "No."}),
    )}  # fmt: skip
    row = {"prompt": "Why?", **sides, **rated}
    assert reversal(row, ColumnRules(form="tulu3")).startswith("'chosen_rating' is below")


def test_the_words_of_a_response_do_not_change_the_reading():
    """Rows of a source share a reading, so that they are counted together."""
    texts = {read_group({**RATED, "chosen": f"So {i}."})[1].to_json() for i in range(3)}
    assert [json.loads(text)[-1] for text in texts] == [BELOW]
