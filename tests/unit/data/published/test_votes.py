import json
from typing import Any

import pytest
from published_rows import ROWS, USER, A, B, said

from rm_ray.data.preferences.group_reading import parse_group
from rm_ray.data.rows.refusals import Reason, RefusedError


def votes(*flags: Any) -> dict[str, Any]:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    return {**ROWS["arena_55k"], **dict(zip(names, flags, strict=True))}


@pytest.mark.parametrize(
    ("flags", "texts", "probability"),
    [
        ((1, 0, 0), [B, A], 1.0),
        ((0, 1, 0), [A, B], 1.0),
        ((0, 0, 1), [B, A], 0.5),
        (("0", "1", "0"), [A, B], 1.0),
    ],
)
def test_a_vote_of_55k_is_for_one_of_three(flags: Any, texts: list[str], probability: float):
    group = parse_group(votes(*flags))

    assert [message["content"] for message in group.responses] == texts
    assert [c.probability for c in group.comparisons] == [probability]


@pytest.mark.parametrize("flags", [(0, 0, 0), (1, 1, 0), (1, 0, None), (0.5, 0.5, 0), ("a", 0, 0)])
def test_a_vote_of_55k_for_none_or_two_is_refused(flags: Any):
    with pytest.raises(RefusedError) as caught:
        parse_group(votes(*flags))
    assert caught.value.reason == Reason.BAD_PREFERENCE


@pytest.mark.parametrize(
    ("winner", "texts", "probability"),
    [
        ("model_a", [A, B], 1.0),
        ("model_b", [B, A], 1.0),
        ("tie", [A, B], 0.5),
        ("tie (bothbad)", [A, B], 0.5),
        ("both_bad", [A, B], 0.5),
    ],
)
def test_a_vote_of_100k_is_for_a_model_or_a_tie(winner: str, texts: list[str], probability: float):
    group = parse_group({**ROWS["arena_100k"], "winner": winner})

    assert [message["content"] for message in group.responses] == texts
    assert [c.probability for c in group.comparisons] == [probability]


@pytest.mark.parametrize("winner", [None, "model_c", 1, ["tie"]])
def test_another_winner_is_refused(winner: Any):
    with pytest.raises(RefusedError, match="winner is") as caught:
        parse_group({**ROWS["arena_100k"], "winner": winner})
    assert caught.value.reason == Reason.BAD_PREFERENCE


def test_conversations_may_be_json_text():
    row = ROWS["arena_100k"]
    sides = ("conversation_a", "conversation_b")

    assert parse_group({**row, **{side: json.dumps(row[side]) for side in sides}}) == (
        parse_group(row)
    )


def test_what_messages_say_about_themselves_is_not_compared():
    row = ROWS["arena_100k"]
    counted = [{**message, "num_tokens": 7} for message in row["conversation_b"]]

    assert parse_group({**row, "conversation_b": counted}) == parse_group(row)
    as_text = {**row, "conversation_b": json.dumps(counted)}
    assert parse_group(as_text) == parse_group(row)


def test_a_battle_of_several_turns_is_refused_because_its_prompts_differ():
    longer = {
        "conversation_a": [USER, said(A), USER, said("Yes.")],
        "conversation_b": [USER, said(B), USER, said("No.")],
    }
    two_turns = {"prompt": '["a", "b"]', "response_a": '["c", "d"]', "response_b": '["e", "f"]'}

    for row in ({**ROWS["arena_100k"], **longer}, {**ROWS["arena_55k"], **two_turns}):
        with pytest.raises(RefusedError) as caught:
            parse_group(row)
        assert caught.value.reason == Reason.PROMPTS_DIFFER
