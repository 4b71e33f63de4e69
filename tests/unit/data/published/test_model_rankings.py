from typing import Any

import pytest
from published_rows import ROWS, A, B, Q, completion

from rm_ray.data.preferences.group_reading import parse_group
from rm_ray.data.published.model_rankings import read_nectar, read_ultrafeedback
from rm_ray.data.rows.refusals import Reason, RefusedError

PERHAPS = "Perhaps."


def test_ultrafeedback_gives_each_completion_its_overall_score():
    assert read_ultrafeedback(ROWS["ultrafeedback"]) == {
        "prompt": Q,
        "responses": [A, B, PERHAPS],
        "scores": [8.5, 2.0, 8.5],
    }
    group = parse_group(ROWS["ultrafeedback"])
    assert group.scores == (8.5, 2.0, 8.5)
    assert [(c.better, c.worse, c.probability) for c in group.comparisons] == [
        (0, 1, 1.0),
        (0, 2, 0.5),
        (2, 1, 1.0),
    ]
    assert group.source == "evol_instruct"


def test_nectar_ranks_all_answers():
    assert read_nectar(ROWS["nectar"])["ranks"] == [1.0, 2.0, 3.0]
    group = parse_group(ROWS["nectar"])
    assert [(c.better, c.worse) for c in group.comparisons] == [(0, 1), (0, 2), (1, 2)]
    assert group.prompt == [{"role": "user", "content": Q}]
    assert group.scores is None


def test_a_prompt_of_nectar_may_have_several_turns():
    prompt = f"\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: {Q}\n\nAssistant: "

    group = parse_group({**ROWS["nectar"], "prompt": prompt})

    assert [turn["content"] for turn in group.prompt] == ["Hi", "Hello.", Q]


@pytest.mark.parametrize(
    ("name", "column", "value", "reason"),
    [
        ("ultrafeedback", "completions", "none", Reason.NOT_MESSAGES),
        ("ultrafeedback", "completions", [A, B], Reason.NOT_MESSAGES),
        ("ultrafeedback", "completions", [], Reason.EMPTY),
        (
            "ultrafeedback",
            "completions",
            [completion(A, 1), completion(B, float("nan"))],
            Reason.BAD_SCORES,
        ),
        ("ultrafeedback", "completions", [{"overall_score": 3}], Reason.EMPTY),
        ("nectar", "answers", [{"answer": A}, {"answer": B, "rank": 1}], Reason.BAD_RANKS),
        ("nectar", "answers", {"answer": A}, Reason.NOT_MESSAGES),
    ],
)
def test_rows_of_another_shape_are_refused(name: str, column: str, value: Any, reason: Reason):
    with pytest.raises(RefusedError) as caught:
        parse_group({**ROWS[name], column: value})

    assert caught.value.reason == reason
