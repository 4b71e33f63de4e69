import json
from collections.abc import Callable, Iterator

import pytest
from pair_rows import PAIR, QUESTION, Row, assistant, both, refusal, turn, user

from rm_ray.data.rows.pairs import LARGEST_MARGIN
from rm_ray.data.rows.refusals import Reason

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
        Reason.NOTHING_TO_LEARN,
        Reason.HELD_OUT,
        Reason.EXCLUDED,
    }
    of_lists = {
        Reason.BAD_FORM,
        Reason.BAD_RANKS,
        Reason.BAD_SCORES,
        Reason.BAD_PREFERENCE,
        Reason.NOTHING_COMPARED,
        Reason.TOO_MANY_RESPONSES,
    }

    assert {reason for reason, _ in REFUSED} == set(Reason) - of_the_tokens - of_lists


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
def test_text_with_a_lone_surrogate_is_refused_with_an_encodable_detail(row: Row):
    read_back = json.loads(json.dumps(row).encode())  # legal in a JSON file, as an escape

    assert str(refusal(read_back)).encode()


ACCEPTABLE_REASONS = {
    "empty final reply": {Reason.EMPTY},
    "identical or empty": {Reason.EMPTY, Reason.IDENTICAL_RESPONSES},
    "speaker tag inside a turn": {Reason.SPEAKER_TAG},
    "speakers do not alternate": {Reason.SPEAKERS_DO_NOT_ALTERNATE},
    "prompts differ": {Reason.PROMPTS_DIFFER},
}


def test_every_row_broken_upstream_is_refused_for_the_right_reason(
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
