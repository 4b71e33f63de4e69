import pytest
from pair_rows import REPLIES, Row, lost

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.rows.column_readings import (
    ColumnReading,
    describe_all,
    refuse_lost_columns,
    sum_up,
)
from rm_ray.data.rows.pairs import read_pair
from rm_ray.data.rows.row_readings import RowReading
from rm_ray.errors import InputError

UNUSED = [
    "context", "Context", "images", "image", "audio", "videos", "documents_text", "passage",
    "chat_history", "systemPrompt2_prompt", "available_tools", "few_shot", "user_question",
]  # fmt: skip


@pytest.mark.parametrize("name", UNUSED)
def test_an_unused_column_of_the_conversation_stops_the_run(name: str):
    row = {"prompt": "Why?", **REPLIES, name: "The sky is blue."}
    reading = sum_up("here", {read_pair(row)[1].to_json(): 1})

    with pytest.raises(InputError) as caught:
        refuse_lost_columns([reading])

    for part in ("here", name, "data.columns", f"data.ignore_columns {name}"):
        assert part in str(caught.value)
    assert lost(row, ColumnRules(ignore=(name,))) == ()
    assert lost({**row, name: None}) == lost({**row, name: []}) == lost({**row, name: " "}) == ()


def test_the_line_names_the_part_of_each_column():
    rows = [
        {"id": 1, "question": "Why?", "system": "Be brief.", "score": 3.0, **REPLIES},
        {"id": 2, "question": "What?", "system": "", "zebra": "?", **REPLIES},
    ]
    counts: dict[str, int] = {}
    for row in rows:
        text = read_pair(row)[1].to_json()
        counts[text] = counts.get(text, 0) + 1

    (line,) = describe_all([sum_up("a.jsonl", counts)])

    assert line.startswith("a.jsonl: chosen from 'chosen', prompt from 'question', ")
    assert "system from 'system' (1 of 2 rows)" in line
    assert "not used: 'id', 'score' (1 of 2 rows); " in line
    assert line.endswith("rm_ray does not know what they hold: 'zebra' (1 of 2 rows)")


def reading_of(row: Row, rules: ColumnRules = NO_RULES) -> RowReading:
    return read_pair(row, "here", rules)[1]


def test_rows_without_a_prompt_are_reported():
    rows = [REPLIES, REPLIES, {"prompt": "q", **REPLIES}]
    counts: dict[str, int] = {}
    for row in rows:
        text = reading_of(row).to_json()
        counts[text] = counts.get(text, 0) + 1
    assert "NO PROMPT in 2 rows" in sum_up("here", counts).describe()
    assert "NO PROMPT" not in sum_up("here", {reading_of(rows[2]).to_json(): 1}).describe()


def test_the_line_begins_with_the_published_forms_of_the_rows():
    readings = [
        RowReading(used={"chosen": "a"}, form="shp"),
        RowReading(used={"chosen": "chosen"}),
    ]
    counts = {reading.to_json(): 2 for reading in readings}

    reading = sum_up("here", counts)

    assert reading.forms == {"shp": 2}
    assert reading.describe().startswith("published form 'shp' (2 of 4 rows); chosen from ")
    assert ColumnReading.from_json(reading.to_json()) == reading
    assert sum_up("here", {readings[1].to_json(): 1}).describe() == "chosen from 'chosen'"


def test_rows_whose_labels_another_column_reverses_are_counted_with_the_first_of_them():
    low = "'score_chosen' is below 'score_rejected'"
    readings = [
        RowReading(used={"chosen": "chosen"}),
        RowReading(used={"chosen": "chosen"}, reversal=low),
        RowReading(used={"chosen": "chosen", "margin": "margin"}, reversal=low),
    ]
    counts = {reading.to_json(): 1_000 + i for i, reading in enumerate(readings)}
    firsts = {reading.to_json(): 20 - i for i, reading in enumerate(readings)}

    reading = sum_up("here", counts, firsts)

    assert reading.reversals == {low: 2_003}
    assert ColumnReading.from_json(reading.to_json()) == reading
    said = f"THE REJECTED RESPONSE IS SAID TO BE BETTER in 2,003 of 3,003 rows ({low}"
    assert f"{said}, the first of them row 18)" in reading.describe()
    assert f"{said})" in sum_up("here", counts).describe()
