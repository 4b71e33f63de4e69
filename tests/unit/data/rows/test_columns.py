from typing import Any

import pytest
from pair_rows import ASKED, NO, SO, SYSTEM

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.rows.column_readings import refuse_missing_columns, sum_up
from rm_ray.data.rows.columns import RowColumns, follow_path
from rm_ray.data.rows.pairs import read_pair
from rm_ray.errors import InputError
from rm_ray.scoring.conversations import parse_conversations


def test_columns_are_mapped_by_name_and_by_path():
    rules = ColumnRules.of(
        ["prompt=question.full_text", "chosen=completions.0.text", "rejected=completions.1.text",
         "margin=m.n", "system=rules"],
        [],
    )  # fmt: skip
    row = {
        "question": {"full_text": "Why is it so?", "id": 7},
        "completions": [{"text": "So."}, {"text": "No."}, {"text": "Neither."}],
        "m.n": 0.5,
        "rules": "Be brief.",
    }

    pair, reading = read_pair(row, "", rules)

    assert (pair.chosen, pair.rejected) == ([SYSTEM, ASKED, SO], [SYSTEM, ASKED, NO])
    assert pair.margin == 0.5
    assert reading.left == ("question.id", "completions.2")
    assert parse_conversations(row, "", rules).messages == [pair.chosen, pair.rejected]
    missing = {"prompt": "nowhere"}
    with pytest.raises(InputError, match=r"data\.columns reads prompt from 'nowhere', but no row"):
        refuse_missing_columns(missing, [sum_up("a", {reading.to_json(): 1})])
    other = {"source": "question.full_text"}
    with pytest.raises(
        InputError, match=r"reads source from 'question\.full_text', but no row uses"
    ):
        refuse_missing_columns(other, [sum_up("a", {reading.to_json(): 1})])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.b", (True, 1)),
        ("c.d.e", (True, 2)),
        ("f.1.g", (True, 4)),
        ("f.2.g", (False, None)),
        ("f.g", (False, None)),
        ("c.d", (True, {"e": 2})),
        ("nowhere", (False, None)),
        ("null", (True, None)),
    ],
)
def test_a_path_follows_names_and_positions_and_whole_names_win(path: str, found: tuple[bool, Any]):
    row = {
        "a.b": 1, "a": {"b": 9}, "c.d": {"e": 2}, "f": [{"g": 3}, {"g": 4}], "null": None
    }  # fmt: skip

    assert follow_path(row, path) == found


def test_the_first_column_with_content_is_taken_and_the_others_are_left():
    columns = RowColumns({"prompt": " ", "Question": "Why?", "query": "What?", "id": 3, "x": None})

    assert columns.take("prompt") == "Why?"
    assert columns.used == {"prompt": "Question"}
    assert list(columns.left()) == [("query", "What?"), ("id", 3)]
    assert columns.take("margin") is None


def test_a_column_that_the_rules_give_to_one_part_is_not_used_for_another():
    rules = ColumnRules(columns={"chosen": "response"}, ignore=("query",))
    columns = RowColumns({"response": "So.", "query": "What?"}, rules)

    assert columns.take("response") is None
    assert columns.take("prompt") is None
    assert columns.take("chosen") == "So."
    assert columns.are_all_taken


def test_a_column_may_be_looked_at_without_taking_it():
    columns = RowColumns({"ranks": None, "Scores": [1], "other": 3})

    assert columns.peek("scores") == [1]
    assert columns.peek("ranks") is None
    assert columns.peek("prompt") is None
    assert columns.used == {}


def test_a_column_is_taken_by_its_exact_name():
    columns = RowColumns({"a": 3, "b": None, "c": 4}, ColumnRules(ignore=("c",)))

    assert [name for name in "abcd" if columns.has(name)] == ["a"]
    assert [columns.take_named("scores", name) for name in "abcd"] == [3, None, None, None]
    assert columns.used == {"scores": "a"}
    assert [name for name, _ in columns.left()] == []


def test_taken_columns_are_reported_under_the_names_they_come_from():
    columns = RowColumns({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "system": "Hi."})
    for part in ("prompt", "chosen", "rejected", "system"):
        columns.take(part)

    columns.rename_used({"chosen": "a' and 'b", "rejected": "a' and 'b", "prompt": "question"})

    assert columns.used == {
        "prompt": "question",
        "chosen": "a' and 'b",
        "rejected": "a' and 'b",
        "system": "system",
    }
    assert columns.are_all_taken
