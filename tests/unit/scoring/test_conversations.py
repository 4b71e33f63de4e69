import json

import published_rows
import pytest

from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.scoring.conversations import parse_conversations

QUESTION = {"role": "user", "content": "How many?"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_pair_has_two_conversations_and_the_first_is_right():
    found = parse_conversations(
        {"prompt": "How many?", "chosen": "3", "rejected": "4", "margin": 0.5}, "here"
    )
    assert found.form == "pair"
    assert found.messages == [[QUESTION, answer("3")], [QUESTION, answer("4")]]
    assert (found.num_correct, found.margin, found.source) == (1, 0.5, "here")


def test_reward_bench_rows_have_a_subset_and_an_id():
    row = {"prompt": "How many?", "chosen": "3", "rejected": "4", "subset": "hep-go", "id": 17}
    found = parse_conversations(row)
    assert (found.subset, found.id) == ("hep-go", "17")


def test_reward_bench_2_has_lists_of_right_and_wrong_responses():
    row = {"prompt": "How many?", "chosen": ["3"], "rejected": ["4", "5", "6"], "subset": "Math"}
    found = parse_conversations(row)
    assert found.form == "responses"
    assert found.num_correct == 1
    assert found.messages == [[QUESTION, answer(text)] for text in "3456"]
    assert found.responses == ["3", "4", "5", "6"]


def test_pairs_of_messages_are_pairs():
    row = {"chosen": [QUESTION, answer("3")], "rejected": [QUESTION, answer("4")]}
    assert parse_conversations(row).form == "pair"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, answer("3")]},
        {"prompt": "How many?", "response": "3"},
        {"prompt": [QUESTION], "response": "3"},
        {"prompt": [QUESTION], "response": [answer("3")]},
    ],
)
def test_a_conversation_may_be_written_in_many_ways(row):
    found = parse_conversations(row)
    assert (found.form, found.messages) == ("conversation", [[QUESTION, answer("3")]])
    assert found.num_correct == 0


def test_no_response_of_a_plain_list_is_known_to_be_right():
    found = parse_conversations(
        {"prompt": "How many?", "responses": ["3", "4"], "source": "ours"}, "here"
    )
    assert (found.form, found.num_correct, found.source) == ("responses", 0, "ours")
    assert found.responses == ["3", "4"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "3"}, Reason.MISSING_FIELD),
        ({}, Reason.MISSING_FIELD),
        ({"prompt": "How many?", "chosen": "3"}, Reason.MISSING_FIELD),
        ({"messages": [QUESTION]}, Reason.LAST_TURN_NOT_ASSISTANT),
        ({"messages": []}, Reason.EMPTY),
        ({"messages": [{"role": "human", "content": "3"}]}, Reason.UNKNOWN_ROLE),
        ({"prompt": "How many?", "response": " "}, Reason.EMPTY),
        ({"prompt": "How many?", "response": 3}, Reason.NOT_MESSAGES),
        ({"prompt": "How many?", "responses": []}, Reason.EMPTY),
        ({"prompt": "How many?", "responses": ["3", None]}, Reason.EMPTY),
        ({"prompt": "How many?", "responses": 2}, Reason.NOT_MESSAGES),
        ({"prompt": "How many?", "chosen": ["3"]}, Reason.MISSING_FIELD),
        ({"prompt": "How many?", "chosen": ["3"], "rejected": ["4", ""]}, Reason.EMPTY),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_with_a_reason(row, reason):
    with pytest.raises(RefusedError) as caught:
        parse_conversations(row)
    assert caught.value.reason == reason


def test_scoring_reads_the_prompt_as_training_does():
    system, row = {"role": "system", "content": "Be brief."}, {"system": "Be brief."}
    row |= {"question": "How many?"}
    pair = {**row, "chosen": "3", "rejected": "4"}

    assert parse_conversations({**row, "response": "3"}).messages == [
        [system, QUESTION, answer("3")]
    ]
    assert parse_conversations({**row, "responses": ["3", "4"]}).messages[1] == [
        system,
        QUESTION,
        answer("4"),
    ]
    assert parse_conversations(pair).messages[0] == parse_pair(pair).chosen
    assert parse_conversations({**row, "response": "3", "images": ["a.png"]}).reading.lost == (
        "images",
    )


THREE, FOUR, FIVE = ([answer(text)] for text in "345")


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"prompt": "How many?", "chosen": ["3", "4"], "rejected": "5"}, "responses"),
        ({"prompt": "How many?", "chosen": "3", "rejected": ["4", "5"]}, "responses"),
        ({"prompt": "How many?", "chosen": ["3"], "rejected": [answer("4")]}, "responses"),
        ({"prompt": "How many?", "chosen": [THREE, FOUR], "rejected": [FIVE]}, "responses"),
        ({"prompt": "How many?", "chosen": ["3"], "rejected": ["4"]}, "responses"),
        ({"prompt": ["a", "b"], "chosen": ["1", "2"], "rejected": ["1", "3"]}, "pair"),
        ({"prompt": ["a"], "responses": ["1", "2"], "ranks": [1, 2]}, "responses"),
        ({"prompt": "How many?", "responses": '["3", "4"]', "ranks": "[1, 2]"}, "responses"),
        ({"prompt": "How many?", "responses": [THREE, FOUR], "scores": [1, 2]}, "responses"),
        ({"messages": [QUESTION], "responses": ["3", "4"], "scores": [1, 2]}, "responses"),
        ({"messages": [QUESTION, *THREE], "responses": ["3", "4"], "ranks": [2, 1]}, "responses"),
        ({"messages": [QUESTION, *THREE], "response": "3", "score": 2}, "conversation"),
    ],
)
def test_every_form_of_a_training_row_is_scored_as_training_reads_it(row, form):
    found, (group, _) = parse_conversations(row), read_group(row)
    assert found.form == form
    assert found.messages == group.conversations


@pytest.mark.parametrize("name", published_rows.ROWS)
def test_every_published_row_is_scored_as_training_reads_it(name):
    row = published_rows.ROWS[name]
    group, _ = read_group(row)
    found = [json.dumps(messages) for messages in parse_conversations(row).messages]
    assert sorted(found) == sorted(map(json.dumps, group.conversations))


def test_a_published_reward_bench_2_row_keeps_its_subset_and_id():
    found = parse_conversations(published_rows.ROWS["reward_bench_2"])
    assert (found.subset, found.id, found.num_correct) == ("Factuality", "12", 1)
    assert found.reading.form == "reward_bench_2"


@pytest.mark.parametrize("label", [{"preference": 0.2}, {"preference": 0.5}, {"tie": True}])
@pytest.mark.parametrize("chosen", ["3", ["3"]])
def test_no_response_is_known_to_be_right_where_the_chosen_side_may_not_be(chosen, label):
    row = {"prompt": "How many?", "chosen": chosen, "rejected": "4"}
    assert parse_conversations(row).num_correct == 1
    assert parse_conversations({**row, "preference": 1.0, "tie": False}).num_correct == 1
    assert parse_conversations({**row, **label}).num_correct == 0


def test_messages_are_a_conversation_beside_a_column_that_lists_no_responses():
    row = {"messages": [QUESTION, *THREE], "responses": []}
    assert parse_conversations(row).messages == [[QUESTION, *THREE]]
    assert parse_conversations({**row, "responses": 4}).form == "conversation"
