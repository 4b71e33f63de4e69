from typing import Any

import pytest

from rm_ray.data.published.published_form import PublishedForm, prefer, require_index, words
from rm_ray.data.rows.refusals import Reason, RefusedError

FORM = PublishedForm(
    name="webgpt",
    dataset="org/set",
    columns=("question", "better"),
    read=lambda row: {"prompt": row["question"], "chosen": row["better"]},
    harmless=words("id model"),
)


def test_columns_that_the_form_does_not_know_stay_in_the_row():
    row = {"question": "Why?", "better": "So.", "id": 1, "model": None, "tools": [], "notes": "x"}

    assert FORM.to_documented(row) == {
        "prompt": "Why?",
        "chosen": "So.",
        "tools": [],
        "notes": "x",
    }


def test_a_row_without_a_column_of_its_form_is_refused_with_its_name():
    with pytest.raises(RefusedError) as caught:
        FORM.to_documented({"question": "Why?"})

    assert caught.value.reason == Reason.MISSING_FIELD
    assert caught.value.detail == "better, which every row of org/set has; data.form is webgpt"


def test_the_response_that_leads_is_chosen():
    assert prefer("a", "b", 2) == {"chosen": "a", "rejected": "b", "preference": 1.0}
    assert prefer("a", "b", -0.1) == {"chosen": "b", "rejected": "a", "preference": 1.0}
    assert prefer("a", "b", 0) == {"chosen": "a", "rejected": "b", "preference": 0.5}


@pytest.mark.parametrize(("value", "index"), [(0, 0), (1.0, 1), ("1", 1)])
def test_a_position_is_0_or_1(value: Any, index: int):
    assert require_index(value, "choice") == index


@pytest.mark.parametrize("value", [True, None, 2, -1, 0.5, "a", float("nan"), [1]])
def test_any_other_position_is_refused(value: Any):
    with pytest.raises(RefusedError, match=r"choice is .*; it is 0 or 1") as caught:
        require_index(value, "choice")
    assert caught.value.reason == Reason.BAD_PREFERENCE
