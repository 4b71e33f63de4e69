import json
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pair_rows import ASKED, NO, ROLES, SO, Row, assistant, turn

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.preferences.group_reading import has_preference, parse_group, read_group
from rm_ray.data.preferences.response_lists import is_list_of_responses
from rm_ray.data.rows.groups import Comparison, Group
from rm_ray.data.rows.pairs import read_pair
from rm_ray.data.rows.refusals import Reason, RefusedError

Q = ASKED["content"]
TEXTS = ["a", "b", "c"]
RANKED: Row = {"prompt": Q, "responses": TEXTS, "ranks": [2, 1, 2]}


def refusal(row: Row, rules: ColumnRules = NO_RULES) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse_group(row, rules=rules)
    return caught.value


def texts(group: Group) -> list[str]:
    return [message["content"] for message in group.responses]


def order(group: Group) -> set[tuple[str, str, float]]:
    """Return (better, worse, probability) of each comparison; of a tie, in alphabetical order."""
    said = texts(group)
    found = set()
    for each in group.comparisons:
        names = said[each.better], said[each.worse]
        found.add((*(sorted(names) if each.is_tie else names), each.probability))
    assert len(found) == len(group.comparisons)
    return found


@pytest.mark.parametrize("name", ["train.jsonl.gz", "eval.jsonl"])
def test_every_real_pair_is_the_group_of_its_pair(
    name: str, real_rows: Callable[[str], Iterator[Row]]
):
    for row in real_rows(name):
        group, reading = read_group(row, "here")
        pair, expected = read_pair(row, "here")
        assert group == Group.pair(
            pair.chosen, pair.rejected, margin=pair.margin, source=pair.source, context=pair.context
        )
        assert reading is expected


def test_a_pair_keeps_its_margin_source_and_tools():
    row = {"prompt": Q, "chosen": "So.", "rejected": "No.", "margin": 2, "source": "hh"}
    group, reading = read_group({**row, "tools": [{"name": "f"}]})

    assert group.comparisons == (Comparison(better=0, worse=1, margin=2.0),)
    assert (group.source, group.prompt) == ("hh", [ASKED])
    assert group.context.tools == [{"type": "function", "function": {"name": "f"}}]
    assert reading.used["margin"] == "margin"


def test_lists_of_chosen_and_rejected_responses_are_compared_across_and_not_among_themselves():
    group = parse_group({"prompt": Q, "chosen": ["a", "b"], "rejected": ["c", "d"]})

    assert group.prompt == [ASKED]
    assert texts(group) == ["a", "b", "c", "d"]
    assert order(group) == {(x, y, 1.0) for x, y in product("ab", "cd")}
    assert group.scores is None


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "chosen": "a", "rejected": ["b", "c"]},
        {"prompt": Q, "chosen": ["a"], "rejected": [[assistant("b")], [assistant("c")]]},
        {"prompt": [ASKED], "chosen": [assistant("a")], "rejected": ["b", "c"]},
        {"chosen": [ASKED, assistant("a")],
         "rejected": [[ASKED, assistant("b")], [ASKED, assistant("c")]]},
        {"prompt": [Q], "chosen": ["a"], "rejected": ["b", "c"]},
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": "a", "rejected": ["b", "c", "b"]},
        {"responses": [[ASKED, assistant(t)] for t in TEXTS], "ranks": [1, 2, 2], "ignored": 1},
        {"prompt": Q, "responses": [assistant(t) for t in TEXTS], "scores": [9, 0.5, 0.5]},
        {"prompt": Q, "responses": json.dumps(TEXTS), "ranks": "[1, 2, 2]"},
    ],
)  # fmt: skip
def test_one_response_and_a_list_in_any_form_give_the_same_responses(row: Row):
    group = parse_group(row)

    assert group.prompt == [ASKED]
    assert texts(group) == TEXTS
    assert (
        {("a", "b", 1.0), ("a", "c", 1.0)}
        <= order(group)
        <= {
            ("a", "b", 1.0),
            ("a", "c", 1.0),
            ("b", "c", 0.5),
        }
    )


def test_turn_lists_stay_one_response_each():
    row = {"prompt": ["Hi", Q], "chosen": ["Hello", "a"], "rejected": ["Hello", "b"]}

    group = parse_group(row)

    assert group == Group.pair(*(read_pair(row)[0].chosen, read_pair(row)[0].rejected))
    lists = {**row, "rejected": [["Hello", "b"], ["Hello", "c"]]}
    assert texts(parse_group(lists)) == ["a", "b", "c"]


def test_equal_responses_of_a_side_count_once():
    group = parse_group({"prompt": Q, "chosen": ["a", "a"], "rejected": ["b", "b"]})

    assert group == parse_group({"prompt": Q, "chosen": "a", "rejected": "b"})


def test_ranks_compare_all_and_equal_ones_tie():
    group, reading = read_group(RANKED)

    assert order(group) == {("b", "a", 1.0), ("b", "c", 1.0), ("a", "c", 0.5)}
    assert group.scores is None
    assert reading.used == {"responses": "responses", "prompt": "prompt", "ranks": "ranks"}


def test_scores_compare_all_and_are_kept():
    group = parse_group({"prompt": Q, "responses": TEXTS, "scores": [1, 4, 1.0]})

    assert order(group) == order(parse_group(RANKED))
    assert group.scores == (1.0, 4.0, 1.0)


def test_ranks_decide_where_there_are_scores_too():
    group = parse_group({**RANKED, "scores": [3, 4, 2]})

    assert order(group) == order(parse_group(RANKED))
    assert group.scores == (3.0, 4.0, 2.0)


def test_identical_responses_of_equal_ranks_or_scores_are_one():
    ranked = parse_group({"prompt": Q, "responses": ["a", "b", "a"], "ranks": [1, 2, 1]})
    scored = parse_group({"prompt": Q, "responses": ["a", "b", "a"], "scores": [3, 1, 3]})

    assert (texts(ranked), order(ranked)) == (["a", "b"], {("a", "b", 1.0)})
    assert (texts(scored), scored.scores) == (["a", "b"], (3.0, 1.0))


def test_a_margin_belongs_to_every_comparison_that_is_won():
    group = parse_group({**RANKED, "margin": 0.5})

    assert {(c.is_tie, c.margin) for c in group.comparisons} == {(False, 0.5), (True, 0.0)}
    sides = parse_group({"prompt": Q, "chosen": ["a"], "rejected": ["b", "c"], "margin": 2})
    assert [c.margin for c in sides.comparisons] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("label", "said", "probability"),
    [
        ({"preference": 0.8}, ["So.", "No."], 0.8),
        ({"preference": 1}, ["So.", "No."], 1.0),
        ({"preference": 0.25}, ["No.", "So."], 0.75),
        ({"preference": 0.5}, ["So.", "No."], 0.5),
        ({"tie": True}, ["So.", "No."], 0.5),
        ({"tie": False}, ["So.", "No."], 1.0),
        ({"tie": None}, ["So.", "No."], 1.0),
    ],
)
def test_the_better_response_of_a_soft_pair_is_the_first(
    label: Row, said: list[str], probability: float
):
    group = parse_group({"prompt": Q, "chosen": "So.", "rejected": "No.", **label})

    assert texts(group) == said
    assert group.comparisons == (Comparison(better=0, worse=1, probability=probability),)


def test_lists_may_tie_or_be_soft():
    row = {"prompt": Q, "chosen": ["a", "b"], "rejected": "c"}

    assert order(parse_group({**row, "tie": True})) == {("a", "c", 0.5), ("b", "c", 0.5)}
    assert order(parse_group({**row, "preference": 0.25})) == {("c", "a", 0.75), ("c", "b", 0.75)}


def test_one_response_with_a_score_is_a_group_without_comparisons():
    group, reading = read_group({"prompt": Q, "response": "So.", "score": 4})

    assert group == Group(prompt=[ASKED], responses=[assistant("So.")], comparisons=(),
                          scores=(4.0,))  # fmt: skip
    assert reading.used == {"response": "response", "prompt": "prompt", "scores": "score"}
    attributes = {"prompt": Q, "response": "So.", "scores": {"a": 1, "b": 3}}
    assert parse_group(attributes).scores == (2.0,)
    weighted = ColumnRules(score_weights=(("a", 0.5),))
    assert parse_group(attributes, rules=weighted).scores == (0.5,)


def test_a_prompt_that_ends_with_one_of_the_responses_is_not_said_twice():
    row = {"messages": [ASKED, assistant("b")], "responses": TEXTS, "ranks": [1, 2, 3]}

    assert parse_group(row).prompt == [ASKED]
    assert refusal({**row, "responses": ["a", "c", "d"]}).reason == Reason.PROMPTS_DIFFER


def test_mapped_columns_may_be_lists():
    row = {"prompt": Q, "samples": {"texts": ["a", "b"]}, "quality": [1, 2]}
    rules = ColumnRules.of(["responses=samples.texts", "scores=quality"], [])

    group, reading = read_group(row, "", rules)

    assert order(group) == {("b", "a", 1.0)}
    assert reading.used["responses"] == "samples.texts"
    assert not reading.left


def test_a_null_column_is_neither_read_nor_reported():
    row = {**RANKED, "chosen": None, "rejected": None, "scores": None, "tie": None}

    group, reading = read_group(row)

    assert group == parse_group(RANKED)
    assert set(reading.used) == {"responses", "prompt", "ranks"}


def test_a_column_that_may_be_part_of_the_conversation_is_lost_beside_lists_too():
    assert read_group({**RANKED, "context": "It may matter."})[1].lost == ("context",)
    assert read_group({**RANKED, "judge": "It may not."})[1].left == ("judge",)


def test_labels_that_a_pair_does_not_use_are_reported():
    row = {"prompt": Q, "chosen": "a", "rejected": "b", "scores": [5, 1], "ranks": [1, 2]}

    group, reading = read_group(row)

    assert group == parse_group({"prompt": Q, "chosen": "a", "rejected": "b"})
    assert reading.left == ("scores", "ranks")


REFUSED: list[tuple[Reason, str, Row]] = [
    (Reason.MISSING_FIELD, "columns: prompt", {"prompt": Q}),
    (Reason.MISSING_FIELD, "columns: none", {}),
    (Reason.MISSING_FIELD, "columns: chosen", {"chosen": ["a"], "ranks": [1]}),
    (Reason.MISSING_FIELD, "columns:", {"prompt": Q, "chosen": ["a"], "rejected": None}),
    (Reason.MISSING_FIELD, "columns:", {"prompt": Q, "chosen": None, "rejected": "b"}),
    (Reason.EMPTY, "chosen.1 is null", {"prompt": Q, "chosen": ["a", None], "rejected": "b"}),
    (Reason.EMPTY, "responses.0 is null", {**RANKED, "responses": [None, "b", "c"]}),
    (Reason.EMPTY, "rejected.0", {"prompt": Q, "chosen": "a", "rejected": ["", "b"]}),
    (Reason.EMPTY, "empty list", {"prompt": Q, "responses": [], "ranks": []}),
    (Reason.EMPTY, "chosen has no turns", {"prompt": Q, "chosen": [], "rejected": ["b"]}),
    (Reason.EMPTY, "the prompt", {**RANKED, "prompt": ""}),
    (Reason.NOT_MESSAGES, "without a prompt", {"chosen": ["Hi", "a"], "rejected": ["Hi", "b"]}),
    (Reason.NOT_MESSAGES, "several kinds", {"prompt": Q, "chosen": ["a", 3], "rejected": "b"}),
    (Reason.NOT_MESSAGES, "responses.0 is a int", {**RANKED, "responses": [1, 2, 3]}),
    (Reason.NOT_MESSAGES, "responses is a dict", {**RANKED, "responses": {"a": "b"}}),
    (Reason.NOT_MESSAGES, "2 texts, and", {"prompt": ["Hi", Q], "chosen": ["a"], "rejected": "b"}),
    (Reason.LAST_TURN_NOT_ASSISTANT, "responses.0 ends with 'user'",
     {"responses": [ASKED, SO], "ranks": [1, 2]}),
    (Reason.LAST_TURN_NOT_ASSISTANT, "rejected.1 ends with 'user'",
     {"prompt": Q, "chosen": [[ASKED, SO]], "rejected": [[ASKED, NO], [ASKED, ASKED]]}),
    (Reason.PROMPTS_DIFFER, "before their last turn",
     {"responses": [[ASKED, SO], [turn("user", "What?"), NO]], "ranks": [1, 2]}),
    (Reason.PROMPTS_DIFFER, "responses.1 one reply without its prompt",
     {"responses": [[ASKED, SO], [NO]], "ranks": [1, 2]}),
    (Reason.IDENTICAL_RESPONSES, "0 and 2", {"prompt": Q, "chosen": ["a", "b"], "rejected": ["a"]}),
    (Reason.IDENTICAL_RESPONSES, "0 and 1",
     {"prompt": Q, "responses": ["a", "a"], "scores": [1, 2]}),
    (Reason.IDENTICAL_RESPONSES, "0 and 2",
     {"prompt": Q, "responses": ["a", "b", "a"], "ranks": [1, 2, 3]}),
    (Reason.IDENTICAL_RESPONSES, "", {"prompt": Q, "chosen": "a", "rejected": "a", "tie": True}),
    (Reason.BAD_RANKS, "2 values for 3", {**RANKED, "ranks": [1, 2]}),
    (Reason.BAD_RANKS, "ranks.1 is null", {**RANKED, "ranks": [1, None, 2]}),
    (Reason.BAD_PREFERENCE, "disagree", {**RANKED, "scores": [5, 4, 3]}),
    (Reason.BAD_SCORES, "scores.2 is not a number (NaN)",
     {**RANKED, "scores": [1, 2, float("nan")]}),
    (Reason.BAD_SCORES, "a text and", {"prompt": Q, "response": "a", "score": "good"}),
    (Reason.BAD_PREFERENCE, "from 0 to 1",
     {"prompt": Q, "chosen": "a", "rejected": "b", "preference": 2}),
    (Reason.BAD_PREFERENCE, "true or false",
     {"prompt": Q, "chosen": ["a"], "rejected": "b", "tie": "no"}),
    (Reason.BAD_PREFERENCE, "sides should be written the other way round",
     {"prompt": Q, "chosen": "a", "rejected": "b", "preference": 0}),
    (Reason.BAD_MARGIN, "margin is 2, and all responses tie",
     {"prompt": Q, "responses": ["a", "b"], "ranks": [1, 1], "margin": 2}),
    (Reason.BAD_PREFERENCE, "the row has responses", {**RANKED, "preference": 0.7}),
    (Reason.BAD_PREFERENCE, "data.ignore_columns tie", {**RANKED, "tie": True}),
    (Reason.BAD_MARGIN, "of only 0.5",
     {"prompt": Q, "chosen": "a", "rejected": "b", "tie": True, "margin": 1}),
    (Reason.BAD_MARGIN, "'big'", {**RANKED, "margin": "big"}),
    (Reason.NOTHING_COMPARED, "neither ranks nor scores", {"prompt": Q, "responses": TEXTS}),
    (Reason.NOTHING_COMPARED, "neither ranks nor scores", {"prompt": Q, "response": "a"}),
    (Reason.NOTHING_COMPARED, "neither", {"prompt": Q, "response": "a", "score": float("nan")}),
    (Reason.NOTHING_COMPARED, "one distinct", {"prompt": Q, "responses": ["a"], "ranks": [1]}),
    (Reason.NOTHING_COMPARED, "one distinct",
     {"prompt": Q, "responses": ["a", "a"], "ranks": [1, 1]}),
    (Reason.TOO_MANY_RESPONSES, "33; data.max_responses allows 32",
     {"prompt": Q, "responses": [*map(str, range(33))], "scores": [*range(33)]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "detail", "row"),
    REFUSED,
    ids=[f"{i}-{r.name}" for i, (r, _, _) in enumerate(REFUSED)],
)
def test_a_row_that_breaks_the_contract_is_refused_for_its_reason(
    reason: Reason, detail: str, row: Row
):
    found = refusal(row)

    assert found.reason == reason
    assert detail in found.detail


def test_every_reason_of_groups_is_covered():
    own = {"BAD_RANKS", "BAD_SCORES", "BAD_PREFERENCE", "NOTHING_COMPARED", "TOO_MANY_RESPONSES"}

    assert own <= {reason.name for reason, _, _ in REFUSED}


def test_the_limit_of_responses_counts_distinct_ones():
    row = {"prompt": Q, "chosen": ["a", "a", "b"], "rejected": ["c"]}

    assert len(parse_group(row, rules=ColumnRules(max_responses=3)).responses) == 3
    assert refusal(row, ColumnRules(max_responses=2)).reason == Reason.TOO_MANY_RESPONSES


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": None, "rejected": None}, True),
        ({"chosen": "a"}, False),
        ({"responses": ["a"]}, False),
        ({"responses": ["a"], "ranks": None}, True),
        ({"responses": ["a"], "scores": None}, True),
        ({"response": "a", "score": 3}, True),
        ({"response": "a", "ranks": 3}, False),
        ({"response": "a"}, False),
        ({"prompt": "a", "scores": [1]}, False),
        ({"question": "a", "response_j": "b", "response_k": "c"}, True),
    ],
)
def test_the_columns_tell_whether_a_row_has_a_preference(row: Row, expected: bool):
    assert has_preference(row) is expected


def test_attribute_columns_and_a_form_count_as_preferences():
    row = {"response": "a", "helpfulness": 3}

    assert has_preference(row, ColumnRules(score_weights=(("helpfulness", 1.0),)))
    assert not has_preference({"chosen": "a", "rejected": "b"}, ColumnRules(form="nectar"))


words = st.text().filter(lambda text: text.strip())


@given(
    st.lists(st.tuples(st.sampled_from(ROLES), words), min_size=1, max_size=3),
    st.lists(words, min_size=2, max_size=5, unique=True),
    st.data(),
)
def test_the_same_list_in_every_form_is_the_same_group(
    prompt_turns: list[tuple[str, str]], responses: list[str], data: st.DataObject
):
    assume(prompt_turns[-1][0] != "assistant")  # which may be one of the responses
    count = len(responses)
    ranks = data.draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    prompt = [turn(role, content) for role, content in prompt_turns]
    replies = [assistant(text) for text in responses]
    expected = Group(
        prompt=prompt,
        responses=replies,
        comparisons=tuple(
            Comparison(better=i, worse=j, probability=0.5)
            if ranks[i] == ranks[j]
            else Comparison(better=min((i, j), key=ranks.__getitem__),
                            worse=max((i, j), key=ranks.__getitem__))
            for i, j in combinations(range(count), 2)
        ),
    )  # fmt: skip
    scores = [10 - rank for rank in ranks]
    labels: list[dict[str, Any]] = [
        {"ranks": ranks},
        {"ranks": json.dumps(ranks)},
        {"scores": scores},
        {"scores": [{"a": score, "b": score} for score in scores]},
        {"scores": {"a": scores}},
    ]
    forms: list[Row] = [
        {"prompt": prompt, "responses": responses},
        {"prompt": prompt, "responses": replies},
        {"prompt": prompt, "responses": [[reply] for reply in replies]},
        {"prompt": prompt, "responses": [[*prompt, reply] for reply in replies]},
        {"responses": [[*prompt, reply] for reply in replies]},
    ]
    for form, label in product(forms, labels):
        group = parse_group(json.loads(json.dumps({**form, **label})))
        assert (group.prompt, group.responses) == (expected.prompt, expected.responses)
        assert group.comparisons == expected.comparisons
        assert group.scores == (tuple(map(float, scores)) if "scores" in label else None)


@given(
    st.lists(words, min_size=2, max_size=5, unique=True),
    st.integers(1, 4),
    st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0]),
)
def test_two_sides_in_every_form_are_the_same_group(
    responses: list[str], split: int, preference: float
):
    chosen, rejected = responses[:split], responses[split:]
    assume(rejected)
    row = {"prompt": [ASKED], "preference": preference}
    forms: list[Row] = [
        {**row, "chosen": chosen, "rejected": rejected},
        {**row, "chosen": [[assistant(t)] for t in chosen], "rejected": rejected},
        {"preference": preference, "chosen": [[ASKED, assistant(t)] for t in chosen],
         "rejected": [[ASKED, assistant(t)] for t in rejected]},
    ]  # fmt: skip
    found = [parse_group(json.loads(json.dumps(form))) for form in forms]
    if len(responses) == 2:
        found.append(parse_group({**row, "chosen": chosen[0], "rejected": rejected[0]}))

    orders = [order(group) for group in found]
    assert all(each == orders[0] for each in orders)
    assert len(orders[0]) == len(chosen) * len(rejected)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["prompt", "chosen", "rejected", "response", "responses", "ranks", "scores", "preference",
     "tie", "margin", "source", "other"]
)  # fmt: skip
lists = st.lists(st.sampled_from(["a", "b", "", 1, 2.5, None, SO, [NO], True]), max_size=3)


@given(st.dictionaries(fields, json_values | lists))
def test_any_json_object_gives_a_sound_group_or_a_refusal(row: Row):
    try:
        group = parse_group(row)
    except RefusedError as refused:
        assert refused.reason in Reason
        return
    count = len(group.responses)
    assert group.comparisons or group.scores
    assert group.scores is None or len(group.scores) == count
    assert len({json.dumps(message, sort_keys=True) for message in group.responses}) == count
    for each in group.comparisons:
        assert each.better != each.worse
        assert {each.better, each.worse} <= set(range(count))
        assert 0.5 <= each.probability <= 1
        assert each.weight == 1.0


pair_fields = st.sampled_from(
    ["prompt", "chosen", "rejected", "margin", "source", "messages", "system", "scores", "other"]
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from([*ROLES, "human"]), "content": json_values}),
    max_size=3,
)


@given(st.dictionaries(pair_fields, json_values | messages))
def test_a_row_with_a_single_response_a_side_is_read_as_its_pair(row: Row):
    assume(not any(map(is_list_of_responses, (row.get("chosen"), row.get("rejected")))))
    try:
        pair, expected = read_pair(row, "here")
    except RefusedError as refused:
        found = refusal(row)
        assert (found.reason, found.detail) == (refused.reason, refused.detail)
        return
    group, reading = read_group(row, "here")
    assert group.conversations == [pair.chosen, pair.rejected]
    assert group.comparisons == (Comparison(better=0, worse=1, margin=pair.margin),)
    assert (group.source, group.context, reading) == (pair.source, pair.context, expected)
