import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rm_ray.data.rows.contract import LARGEST_MARGIN, Pair, Reason, RefusedError
from rm_ray.data.rows.pairs import parse_pair

Row = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool", "developer")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def user(content: str) -> dict[str, str]:
    return turn("user", content)


def assistant(content: str) -> dict[str, str]:
    return turn("assistant", content)


QUESTION = user("Why?")
PAIR = Pair(chosen=[QUESTION, assistant("So.")], rejected=[QUESTION, assistant("No.")])


def refusal(row: Row) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse_pair(row)
    return caught.value


def test_message_lists_with_the_prompt_in_them_are_taken_as_they_are():
    assert parse_pair({"chosen": PAIR.chosen, "rejected": PAIR.rejected}) == PAIR
    assert PAIR.prompt == [QUESTION]


def test_a_prompt_of_messages_goes_before_responses_of_messages():
    row = {"prompt": [QUESTION], "chosen": PAIR.chosen[1:], "rejected": PAIR.rejected[1:]}

    assert parse_pair(row) == PAIR


def test_a_prompt_of_messages_goes_before_responses_that_are_strings():
    assert parse_pair({"prompt": [QUESTION], "chosen": "So.", "rejected": "No."}) == PAIR


def test_a_prompt_that_is_a_string_goes_before_responses_of_messages():
    row = {"prompt": "Why?", "chosen": PAIR.chosen[1:], "rejected": PAIR.rejected[1:]}

    assert parse_pair(row) == PAIR


def test_a_prompt_that_is_a_string_goes_before_responses_that_are_strings():
    assert parse_pair({"prompt": "Why?", "chosen": "So.", "rejected": "No."}) == PAIR


@pytest.mark.parametrize("prompt", ["Why?", [QUESTION], None, []])
def test_a_prompt_that_the_messages_already_hold_is_not_repeated(prompt: Any):
    row = {"prompt": prompt, "chosen": PAIR.chosen, "rejected": PAIR.rejected}

    assert parse_pair(row) == PAIR


def test_strings_alone_are_responses_without_a_prompt():
    pair = parse_pair({"chosen": "So.", "rejected": "No."})

    assert pair == Pair(chosen=[assistant("So.")], rejected=[assistant("No.")])
    assert pair.prompt == []


def test_one_side_may_be_a_string_and_the_other_messages():
    row = {"prompt": "Why?", "chosen": "So.", "rejected": [assistant("No.")]}

    assert parse_pair(row) == PAIR


def test_a_transcript_becomes_turns():
    start = "\n\nHuman: Hi \n\nAssistant: Hello, you\nthere.\n\nHuman: Why?\n\nAssistant:"

    pair = parse_pair({"chosen": f"{start} So.", "rejected": f"{start} No.\n"})

    prompt = [user("Hi"), assistant("Hello, you\nthere."), user("Why?")]
    assert pair == Pair(chosen=[*prompt, assistant("So.")], rejected=[*prompt, assistant("No.")])


@pytest.mark.parametrize("before", ["", "\n", "\n\n", "\n\n\n", " ", "  \n\n", "\t"])
def test_a_transcript_keeps_its_first_turn_whatever_space_is_before_it(before: str):
    start = f"{before}Human: Why?\n\nAssistant:"

    assert parse_pair({"chosen": f"{start} So.", "rejected": f"{start} No."}) == PAIR


def test_a_speaker_in_the_middle_of_a_line_is_no_transcript():
    pair = parse_pair({"chosen": "The Human: a study.", "rejected": "No."})

    assert pair.chosen == [assistant("The Human: a study.")]


def test_a_response_after_a_prompt_is_never_read_as_a_transcript():
    row = {"prompt": "Write a scene.", "chosen": "Human: Hi", "rejected": "Assistant: Hi"}

    assert parse_pair(row).chosen == [user("Write a scene."), assistant("Human: Hi")]


def test_every_role_is_accepted():
    prompt = [turn(role, "text") for role in ROLES] + [QUESTION]
    row = {"chosen": [*prompt, assistant("So.")], "rejected": [*prompt, assistant("No.")]}

    assert {message["role"] for message in parse_pair(row).chosen} == set(ROLES)


@pytest.mark.parametrize("role", ["system", "tool"])
def test_only_people_must_say_something(role: str):
    prompt = [turn(role, ""), QUESTION]
    row = {"chosen": [*prompt, assistant("So.")], "rejected": [*prompt, assistant("No.")]}

    assert parse_pair(row).prompt == prompt


def test_messages_keep_all_their_keys_and_are_compared_without_notes_about_them():
    row = {
        "chosen": [{**QUESTION, "id": 3}, assistant("So.")],
        "rejected": [{**QUESTION, "id": 4}, {**assistant("No."), "name": "x"}],
    }

    pair = parse_pair(row)

    assert pair.chosen == [{**QUESTION, "id": 3}, assistant("So.")]
    assert pair.rejected == [{**QUESTION, "id": 3}, {**assistant("No."), "name": "x"}]


def test_contents_are_kept_to_the_letter():
    row = {"prompt": " Why? \n", "chosen": "\tSo. ", "rejected": "So."}

    pair = parse_pair(row)

    assert pair.chosen == [user(" Why? \n"), assistant("\tSo. ")]
    assert pair.rejected[-1] == assistant("So.")


def test_a_source_is_kept_and_else_the_default_stands():
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}

    assert parse_pair(row, "file.jsonl").source == "file.jsonl"
    assert parse_pair({**row, "source": "hh"}, "file.jsonl").source == "hh"
    for no_name in (None, "", 3, ["hh"]):
        assert parse_pair({**row, "source": no_name}, "file.jsonl").source == "file.jsonl"


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (None, 0.0),
        (float("nan"), 0.0),
        (0.25, 0.25),
        (-2, -2.0),
        (3, 3.0),
        (LARGEST_MARGIN, LARGEST_MARGIN),
    ],
)
def test_a_margin_is_a_number_and_zero_where_there_is_none(margin: Any, expected: float):
    pair = parse_pair({"chosen": "So.", "rejected": "No.", "margin": margin})

    assert pair.margin == expected
    assert isinstance(pair.margin, float)


def test_swapping_a_pair_twice_gives_it_back():
    pair = parse_pair({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "source": "hh"})

    assert pair.swap().chosen == pair.rejected
    assert pair.swap().rejected == pair.chosen
    assert pair.swap().swap() == pair


def both(*prompt: Any, chosen: Any = "So.", rejected: Any = "No.") -> Row:
    return {
        "chosen": [*prompt, assistant(chosen)],
        "rejected": [*prompt, assistant(rejected)],
    }


REFUSED: list[tuple[Reason, Row]] = [
    (Reason.MISSING_FIELD, {}),
    (Reason.MISSING_FIELD, {"chosen": "So."}),
    (Reason.MISSING_FIELD, {"chosen": None, "rejected": "No."}),
    (Reason.NOT_MESSAGES, {"chosen": 3, "rejected": "No."}),
    (Reason.NOT_MESSAGES, {"chosen": "So.", "rejected": {"speaker": "assistant", "text": "No."}}),
    (Reason.NOT_MESSAGES, {"chosen": ["So."], "rejected": ["No."]}),
    (Reason.NOT_MESSAGES, both({"role": "user"})),
    (Reason.NOT_MESSAGES, both({"role": "user", "content": None})),
    (Reason.NOT_MESSAGES, both({"role": "user", "content": ["Why?"]})),
    (Reason.NOT_MESSAGES, {"prompt": 3, "chosen": "So.", "rejected": "No."}),
    (Reason.NOT_MESSAGES, {"prompt": {"a": 1}, "chosen": PAIR.chosen, "rejected": PAIR.rejected}),
    (Reason.NOT_TEXT, both({"role": "user", "content": [{"type": "image", "image": "a.png"}]})),
    (Reason.BAD_TOOLS, {"chosen": "So.", "rejected": "No.", "tools": "search, add"}),
    (Reason.BAD_DOCUMENTS, {"chosen": "So.", "rejected": "No.", "documents": [3]}),
    (Reason.TEMPLATED, {"chosen": "<|im_start|>user\nWhy?<|im_end|>\n", "rejected": "No."}),
    (Reason.NOT_UNICODE, {"chosen": "half an emoji \ud83d", "rejected": "No."}),
    (Reason.NOT_UNICODE, {"chosen": "So.", "rejected": "\ude00 half an emoji"}),
    (Reason.NOT_UNICODE, both(user("half an emoji \ud83d"))),
    (Reason.UNKNOWN_ROLE, both(turn("human", "Why?"))),
    (Reason.UNKNOWN_ROLE, both({"content": "Why?"})),
    (Reason.UNKNOWN_ROLE, both({"role": ["user"], "content": "Why?"})),
    (Reason.EMPTY, {"chosen": [], "rejected": []}),
    (Reason.EMPTY, {"chosen": [], "rejected": PAIR.rejected}),
    (Reason.EMPTY, {"chosen": "", "rejected": "No."}),
    (Reason.EMPTY, {"chosen": "So.", "rejected": " \n"}),
    (Reason.EMPTY, {"prompt": "", "chosen": "So.", "rejected": "No."}),
    (Reason.EMPTY, both(QUESTION, chosen="")),
    (Reason.EMPTY, both(user(" "))),
    (Reason.EMPTY, both(QUESTION, assistant(""), QUESTION)),
    (Reason.LAST_TURN_NOT_ASSISTANT, {"chosen": [user("So.")], "rejected": [user("No.")]}),
    (Reason.LAST_TURN_NOT_ASSISTANT, {"chosen": PAIR.chosen, "rejected": [QUESTION, user("No.")]}),
    (
        Reason.LAST_TURN_NOT_ASSISTANT,
        {"chosen": "\n\nHuman: Why?", "rejected": "\n\nHuman: What?"},
    ),
    (
        Reason.SPEAKER_TAG,
        {
            "chosen": "Human: Why?\n\nAssistant: Human: So.",
            "rejected": "Human: Why?\n\nAssistant: N",
        },
    ),
    (
        Reason.SPEAKER_TAG,
        {"chosen": "Human: Why? Assistant: Eh\n\nAssistant: So.", "rejected": "No."},
    ),
    (
        Reason.SPEAKERS_DO_NOT_ALTERNATE,
        {"chosen": "Human: Why?\n\nHuman: Well?\n\nAssistant: So.", "rejected": "No."},
    ),
    (Reason.PROMPTS_DIFFER, {"chosen": PAIR.chosen, "rejected": [user("What?"), assistant("No.")]}),
    (Reason.PROMPTS_DIFFER, {"chosen": PAIR.chosen, "rejected": "No."}),
    (Reason.PROMPTS_DIFFER, {"chosen": "Human: Why?\n\nAssistant: So.", "rejected": "No."}),
    (Reason.IDENTICAL_RESPONSES, both(QUESTION, chosen="So.", rejected="So.")),
    (Reason.IDENTICAL_RESPONSES, {"prompt": "Why?", "chosen": "So.", "rejected": "So."}),
    (Reason.BAD_MARGIN, {"chosen": "So.", "rejected": "No.", "margin": "big"}),
    (Reason.BAD_MARGIN, {"chosen": "So.", "rejected": "No.", "margin": True}),
    (Reason.BAD_MARGIN, {"chosen": "So.", "rejected": "No.", "margin": "0.5"}),
    (Reason.BAD_MARGIN, {"chosen": "So.", "rejected": "No.", "margin": float("inf")}),
    (Reason.BAD_MARGIN, {"chosen": "So.", "rejected": "No.", "margin": -float("inf")}),
    (Reason.BAD_MARGIN, {"chosen": "So.", "rejected": "No.", "margin": 10**400}),
    (Reason.BAD_MARGIN, {"chosen": "So.", "rejected": "No.", "margin": 1.01 * LARGEST_MARGIN}),
    (Reason.BAD_MARGIN, {"chosen": "So.", "rejected": "No.", "margin": -1.01 * LARGEST_MARGIN}),
]


@pytest.mark.parametrize(
    ("reason", "row"), REFUSED, ids=[f"{i}-{reason.name}" for i, (reason, _) in enumerate(REFUSED)]
)
def test_a_row_that_breaks_the_contract_is_refused_for_its_reason(reason: Reason, row: Row):
    assert refusal(row).reason == reason


def test_every_reason_that_needs_no_tokenizer_is_covered():
    of_the_tokens = {
        Reason.RESERVED_TOKENS,
        Reason.TEMPLATE_REFUSED,
        Reason.LEFT_OUT,
        Reason.IDENTICAL_AFTER_TEMPLATING,
        Reason.PROMPT_TOO_LONG,
        Reason.TOO_LONG,
        Reason.HELD_OUT,
    }

    assert {reason for reason, _ in REFUSED} == set(Reason) - of_the_tokens


def test_a_refusal_says_what_was_found():
    assert refusal({"chosen": "So.", "id": 3}).detail == "columns: chosen, id"
    assert refusal({}).detail == "columns: none"
    assert refusal({"chosen": 3, "rejected": "No."}).detail == "chosen is a int"
    assert refusal(both(turn("human", "Why?"))).detail == "'human' in chosen"
    assert "rejected ends with 'user'" in str(
        refusal({"chosen": PAIR.chosen, "rejected": [QUESTION, user("No.")]})
    )
    assert str(refusal(both(chosen="So.", rejected="So."))) == "identical responses"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "half an emoji \ud83d", "rejected": "No."},
        {"chosen": "So.", "half an emoji \ud83d": "No."},
        both({"role": "\ud83d", "content": "Why?"}),
        {"chosen": "Human: \ud83d Human: Why?\n\nAssistant: So.", "rejected": "No."},
    ],
)
def test_text_that_no_file_can_hold_is_refused_in_words_that_one_can(row: Row):
    read_back = json.loads(json.dumps(row).encode())  # legal in a JSON file, as an escape

    assert str(refusal(read_back)).encode()


def test_a_source_that_no_file_can_hold_is_still_a_name():
    row = {"prompt": "q", "chosen": "So.", "rejected": "No.", "source": "half an emoji \ud83d"}

    assert parse_pair(row).source.encode().startswith(b"half an emoji ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from([*ROLES, "human"]), "content": json_values}),
    max_size=3,
)
fields = st.sampled_from(["prompt", "chosen", "rejected", "margin", "source", "other"])


@given(st.dictionaries(fields, json_values | messages))
def test_any_json_object_gives_a_pair_or_a_refusal(row: Row):
    try:
        pair = parse_pair(row)
    except RefusedError as refused:
        assert refused.reason in Reason
        return
    assert pair.chosen[:-1] == pair.rejected[:-1] == pair.prompt
    assert pair.chosen[-1]["role"] == pair.rejected[-1]["role"] == "assistant"
    assert pair.chosen != pair.rejected


words = st.text().filter(lambda text: text.strip())


@given(st.lists(st.tuples(st.sampled_from(ROLES), words), max_size=4), words, words)
def test_the_same_pair_in_every_form_is_the_same_pair(
    prompt_turns: list[tuple[str, str]], better: str, worse: str
):
    assume(better != worse)
    assume(not prompt_turns or prompt_turns[-1][0] != "assistant")  # which may be the answer
    prompt = [turn(role, content) for role, content in prompt_turns]
    pair = Pair(chosen=[*prompt, assistant(better)], rejected=[*prompt, assistant(worse)])
    forms: list[Row] = [
        {"chosen": pair.chosen, "rejected": pair.rejected},
        {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected},
        {"prompt": prompt, "chosen": better, "rejected": worse},
    ]
    if prompt:
        forms.append(
            {"prompt": prompt, "chosen": [assistant(better)], "rejected": [assistant(worse)]}
        )

    for row in forms:
        assert parse_pair(json.loads(json.dumps(row))) == pair


ACCEPTABLE_REASONS = {
    "empty final reply": {Reason.EMPTY},
    "identical or empty": {Reason.EMPTY, Reason.IDENTICAL_RESPONSES},
    "speaker tag inside a turn": {Reason.SPEAKER_TAG},
    "speakers do not alternate": {Reason.SPEAKERS_DO_NOT_ALTERNATE},
    "prompts differ": {Reason.PROMPTS_DIFFER},
}


def test_every_row_that_is_broken_upstream_is_refused_for_the_right_reason(
    real_rows: Callable[[str], Iterator[Row]],
):
    rows = list(real_rows("malformed_raw.jsonl"))

    wrong = []
    for row in rows:
        reason = refusal(row).reason
        if not any(reason in ACCEPTABLE_REASONS[why] for why in row["why"]):
            wrong.append((row["source"], row["line"], row["why"], str(reason)))

    assert wrong == []
    assert len(rows) == 55


def test_every_real_pair_is_accepted_unchanged(real_rows: Callable[[str], Iterator[Row]]):
    rows = list(real_rows("train.jsonl.gz"))

    for row in rows:
        assert parse_pair(row) == Pair(
            chosen=row["chosen"], rejected=row["rejected"], source=row["source"]
        )

    assert len(rows) == 4_421
