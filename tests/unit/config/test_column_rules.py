import json

import pytest

from rm_ray.config.column_rules import (
    ALIASES,
    NO_RULES,
    ColumnRules,
    require_rules,
    require_score_weights,
)
from rm_ray.errors import InputError


def test_a_rule_ends_its_part_at_the_first_equals_sign():
    rules = ColumnRules.of(["prompt=question.text", "chosen=a=b"], ["id"])

    assert rules == ColumnRules(
        columns={"prompt": "question.text", "chosen": "a=b"}, ignore=("id",)
    )


def test_equal_rules_are_one_dictionary_key():
    one = ColumnRules(columns={"prompt": "a", "chosen": "b"}, ignore=("c",))
    other = ColumnRules(columns={"chosen": "b", "prompt": "a"}, ignore=("c",))

    assert {one: "kept"}[other] == "kept"
    assert one != ColumnRules(columns={"prompt": "a", "chosen": "b"})


def test_empty_rules_are_not_set():
    assert not NO_RULES.are_set
    assert ColumnRules(columns={"prompt": "a"}).are_set
    assert ColumnRules(ignore=("a",)).are_set
    assert ColumnRules(form="nectar").are_set
    assert ColumnRules(max_responses=9).are_set
    assert ColumnRules(score_weights=(("a", 1.0),)).are_set


def test_the_key_tells_rules_apart_and_not_the_order_of_columns():
    rules = [
        ColumnRules(),
        ColumnRules(columns={"prompt": "a"}),
        ColumnRules(ignore=("a",)),
        ColumnRules(form="nectar"),
        ColumnRules(max_responses=9),
        ColumnRules(score_weights=(("a", 1.0),)),
        ColumnRules(score_weights=(("a", 2.0),)),
    ]

    assert NO_RULES.key == []
    assert len({json.dumps(each.key) for each in rules}) == len(rules) == len({*rules})
    one = ColumnRules(columns={"prompt": "a", "chosen": "b"}, score_weights=(("a", 1.0), ("b", 2)))
    other = ColumnRules(
        columns={"chosen": "b", "prompt": "a"}, score_weights=(("b", 2), ("a", 1.0))
    )
    assert one.key == other.key


def test_weights_of_attributes_are_parsed_to_numbers():
    rules = ColumnRules.of([], [], score_weights=("helpfulness=0.65", "a=b=-1e-1"))

    assert rules.score_weights == (("helpfulness", 0.65), ("a=b", -0.1))


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        (("helpfulness",), "ATTRIBUTE=WEIGHT"),
        (("=1",), "ATTRIBUTE=WEIGHT"),
        (("a=b",), "ATTRIBUTE=WEIGHT"),
        (("a=nan",), "finite number"),
        (("a=inf",), "finite number"),
        (("a=1", "a=2"), "at most once"),
        (("a=0", "b=0"), "weights of which one is not 0"),
    ],
)
def test_other_weights_are_refused(weights: tuple[str, ...], rule: str):
    require_score_weights("data.score_weights", ())
    require_score_weights("data.score_weights", ("a=0", "b=-1"))
    with pytest.raises(InputError, match=r"data\.score_weights must be") as caught:
        require_score_weights("data.score_weights", weights)
    assert rule in str(caught.value)


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(InputError) as caught:
        require_rules("data.", ("answer=text",), ())

    assert str(caught.value).startswith("data.columns must be a list of PART=COLUMN")
    assert ", ".join(ALIASES) in str(caught.value)


@pytest.mark.parametrize("part", ALIASES)
def test_every_part_may_be_mapped(part: str):
    require_rules("", (f"{part}=column",), ("other",))
