import pytest
from pair_rows import ASKED, REPLIES, SO, Row, lost

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.rows.pairs import parse_pair, read_pair
from rm_ray.data.rows.row_readings import RowReading


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why is it so?", "context": "so?", **REPLIES},
        {"prompt": "Why is it so?", "messages": [ASKED, SO], **REPLIES},
        {"prompt": "Why is it so?", "conversation": [{"input": "Why is it so?", "output": "So."}],
         **REPLIES},
        {"prompt": "Why is it so?", "response": "No matter.", "id": 3, "score_chosen": 4.5,
         "labelling_prompt": "Rate:", "generations": ["a"], "prompt_id": "p",
         "language": "English", "chosen_model": "m", "images": []} | REPLIES,
    ],
)  # fmt: skip
def test_columns_that_add_nothing_do_not_stop_the_run(row: Row):
    assert lost(row) == ()


def reading_of(row: Row, rules: ColumnRules = NO_RULES) -> RowReading:
    return read_pair(row, "here", rules)[1]


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({"source": "Hello there, world", **REPLIES}, "source"),
        ({"data": {"text": "What is up there?"}, **REPLIES}, "data"),
        ({"turn_texts": ["What is up there?"], **REPLIES}, "turn_texts"),
        ({"translation": {"de": "Guten Tag"}, **REPLIES}, "translation"),
        ({"prompt": "q", "chosen_reasoning": "a b", **REPLIES}, "chosen_reasoning"),
        ({"prompt": "q", "rejected_messages": "a b", **REPLIES}, "rejected_messages"),
    ],
)
def test_an_unused_column_that_may_be_part_of_the_conversation_stops_the_run(row: Row, lost: str):
    assert reading_of(row).lost == (lost,)


def test_a_source_is_a_name_if_it_is_mapped_or_short_or_there_is_a_prompt():
    several = {"source": "Hello there, world", **REPLIES}
    assert reading_of(several, ColumnRules(columns={"source": "source"})).lost == ()
    assert parse_pair({"source": "forum", **REPLIES}).source == "forum"
    assert parse_pair({**several, "prompt": "q"}).source == "Hello there, world"
