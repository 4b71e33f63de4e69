from typing import Any

import pytest
from published_rows import ATTRIBUTES, ROWS, A, B, Q

from rm_ray.config.column_rules import ColumnRules, Form
from rm_ray.data.preferences.group_reading import parse_group, read_group
from rm_ray.data.published.helpsteer import read_helpsteer2, read_turns
from rm_ray.data.rows.groups import Comparison
from rm_ray.data.rows.refusals import Reason, RefusedError


def test_a_row_of_helpsteer2_is_one_response_with_attributes():
    assert read_helpsteer2(ROWS["helpsteer2"]) == {
        "prompt": Q,
        "response": A,
        "scores": ATTRIBUTES,
    }
    group = parse_group(ROWS["helpsteer2"])
    assert (len(group.responses), group.comparisons, group.scores) == (1, (), (4.0,))


def test_the_score_of_helpsteer2_is_helpfulness_and_the_log_says_so():
    _, reading = read_group(ROWS["helpsteer2"])

    assert reading.used["scores"] == "helpfulness"
    assert reading.left == ("correctness", "coherence", "complexity", "verbosity")


def test_weights_make_the_score_of_helpsteer2():
    weights = (("helpfulness", 0.65), ("correctness", 0.8), ("verbosity", -0.4))

    group = parse_group(ROWS["helpsteer2"], rules=ColumnRules(score_weights=weights))

    assert group.scores == (pytest.approx(0.65 * 4 + 0.8 * 3 - 0.4 * 2),)
    _, reading = read_group(ROWS["helpsteer2"], rules=ColumnRules(score_weights=weights))
    assert reading.used["scores"] == "helpfulness' and 'correctness' and 'verbosity"
    assert reading.left == ("coherence", "complexity")


@pytest.mark.parametrize("form", ["auto", "helpsteer2"])
def test_attributes_of_helpsteer2_may_be_ignored_but_not_the_one_that_is_the_score(form: Form):
    row = ROWS["helpsteer2"]
    group, reading = read_group(row, rules=ColumnRules(ignore=("verbosity",), form=form))

    assert (group.scores, reading.form) == ((4.0,), "helpsteer2")
    assert reading.left == ("correctness", "coherence", "complexity")
    rules = ColumnRules(ignore=("helpfulness",), form=form)
    with pytest.raises(RefusedError, match="form 'helpsteer2' needs 'helpfulness'") as caught:
        read_group(row, rules=rules)
    assert caught.value.reason == Reason.BAD_FORM
    weighted = ColumnRules(
        ignore=("helpfulness",), form=form, score_weights=(("correctness", 1.0),)
    )
    assert parse_group(row, rules=weighted).scores == (3.0,)


def test_a_mapped_score_wins_over_the_forms():
    rules = ColumnRules(columns={"scores": "correctness"})
    group, reading = read_group(ROWS["helpsteer2"], rules=rules)

    assert (group.scores, reading.used["scores"]) == ((3.0,), "correctness")
    assert reading.left == ("helpfulness", "coherence", "complexity", "verbosity")


def test_a_prompt_of_several_turns_becomes_messages():
    prompt = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nWhy?\nTell me."

    assert read_turns(prompt) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?\nTell me."},
    ]
    assert read_turns(Q) == Q
    assert read_turns(None) is None
    assert len(parse_group({**ROWS["helpsteer2_preference"], "prompt": prompt}).prompt) == 3


@pytest.mark.parametrize(
    ("name", "column"),
    [("helpsteer2_preference", "preference_strength"), ("helpsteer3", "overall_preference")],
)
@pytest.mark.parametrize(
    ("strength", "said", "margin", "probability"),
    [
        (-3, [A, B], 3.0, 1.0),
        (-1, [A, B], 1.0, 1.0),
        (0, [A, B], 0.0, 0.5),
        (1, [B, A], 1.0, 1.0),
        (2.0, [B, A], 2.0, 1.0),
    ],
)
def test_a_negative_strength_prefers_the_first_response_and_its_size_is_the_margin(
    name: str, column: str, strength: float, said: list[str], margin: float, probability: float
):
    group = parse_group({**ROWS[name], column: strength})

    assert [message["content"] for message in group.responses] == said
    assert group.comparisons == (
        Comparison(better=0, worse=1, margin=margin, probability=probability),
    )


@pytest.mark.parametrize("strength", [None, 4, -3.5, "1", True, float("nan")])
def test_any_other_strength_is_refused(strength: Any):
    with pytest.raises(RefusedError, match="it is a whole number from -3 to 3") as caught:
        parse_group({**ROWS["helpsteer3"], "overall_preference": strength})
    assert caught.value.reason == Reason.BAD_PREFERENCE
