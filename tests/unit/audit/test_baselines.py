"""Rules without a model."""

from typing import Any

import pytest

from rm_ray.audit.baselines import Credit, credit_rules, find_writers, is_refusal
from rm_ray.data.preferences.group_reading import read_group

PAIR = {"prompt": "Why?", "chosen": "A long answer.", "rejected": "Short."}


def credits(**row: Any) -> dict[str, Credit]:
    return credit_rules(*_read(row))


def _read(row: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    group, reading = read_group(row)
    return group, row, reading


def won(won: float, of: float = 1.0) -> Credit:
    return Credit(won=won, of=of)


NOTHING = won(0.0, 0.0)


def test_the_longer_response_of_a_pair_wins_or_not():
    assert credits(**PAIR)["longer"] == won(1.0)
    assert credits(**{**PAIR, "chosen": "No."})["longer"] == won(0.0)
    assert credits(**{**PAIR, "chosen": "Other."})["longer"] == NOTHING
    assert credits(**PAIR, preference=0.2)["longer"] == won(0.0)
    assert credits(**PAIR, tie=True)["longer"] == NOTHING


def test_comparisons_of_a_list_weigh_one_together():
    row = {"prompt": "Why?", "responses": ["aaa", "bb", "cccc"], "ranks": [1, 2, 3]}
    # aaa beats bb and cccc, bb beats cccc.
    assert credits(**row)["longer"] == won(pytest.approx(1 / 3))
    assert credits(**row)["first"] == won(pytest.approx(1.0))


def test_columns_that_the_labels_name_have_no_first_response():
    assert credits(**PAIR)["first"] == NOTHING


@pytest.mark.parametrize(("winner", "share"), [("model_a", 1.0), ("model_b", 0.0)])
def test_published_votes_tell_which_response_came_first(winner: str, share: float):
    sides = ("one", "two")
    row = {
        f"conversation_{name}": [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": text},
        ]
        for name, text in zip("ab", sides, strict=True)
    }
    assert credits(**row, winner=winner)["first"] == won(share)


def test_texts_of_other_columns_tell_it_too():
    row = {"prompt": "Why?", "response_0": "yes", "response_1": "no, no", "better_response_id": 1}
    assert credits(**row, safer_response_id=0)["first"] == won(0.0)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m really sorry. That is illegal.",
        "As an AI, I have no opinion.",
        "I cannot assist with this request.",
        "Unfortunately, I am not able to do that.",
        "I apologize, that is private.",
    ],
)
def test_refusals_are_known_by_their_beginning(text: str):
    assert is_refusal(text)
    assert not is_refusal("The word is " + 200 * "x" + text)


@pytest.mark.parametrize("text", ["Sure, here it is.", "Be sorry for me.", "A canister.", ""])
def test_answers_are_no_refusals(text: str):
    assert not is_refusal(text)


def test_the_response_that_refuses_loses_or_not():
    no = "I cannot help with that."
    assert credits(**{**PAIR, "rejected": no})["answers"] == won(1.0)
    assert credits(**{**PAIR, "chosen": no})["answers"] == won(0.0)
    assert credits(**PAIR)["answers"] == NOTHING


def test_columns_may_say_what_wrote_each_response():
    assert find_writers({**PAIR, "chosen_model": "a", "rejected_model": "b"}) == ("a", "b")
    assert find_writers({"source_chosen": "a", "source_rejected": "b"}) == ("a", "b")
    assert find_writers({**PAIR, "chosen_model": "a"}) is None
    assert find_writers(PAIR) is None
