import pytest

from rm_ray.config.column_rules import ALIASES, NO_RULES, ColumnRules, require_rules
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


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(InputError) as caught:
        require_rules("data.", ("answer=text",), ())

    assert str(caught.value).startswith("data.columns must be a list of PART=COLUMN")
    assert ", ".join(ALIASES) in str(caught.value)


@pytest.mark.parametrize("part", ALIASES)
def test_every_part_may_be_mapped(part: str):
    require_rules("", (f"{part}=column",), ("other",))
