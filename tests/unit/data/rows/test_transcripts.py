import pytest
from pair_rows import ANSWERED, ASKED, PAIR, REPLIES, assistant, refusal, user

from rm_ray.data.rows.pairs import Pair, parse_pair
from rm_ray.data.rows.refusals import Reason


def test_a_transcript_becomes_turns():
    start = "\n\nHuman: Hi \n\nAssistant: Hello, you\nthere.\n\nHuman: Why?\n\nAssistant:"

    pair = parse_pair({"chosen": f"{start} So.", "rejected": f"{start} No.\n"})

    prompt = [user("Hi"), assistant("Hello, you\nthere."), user("Why?")]
    assert pair == Pair(chosen=[*prompt, assistant("So.")], rejected=[*prompt, assistant("No.")])


@pytest.mark.parametrize("before", ["", "\n", "\n\n", "\n\n\n", " ", "  \n\n", "\t"])
def test_a_transcript_keeps_its_first_turn_after_any_whitespace(before: str):
    start = f"{before}Human: Why?\n\nAssistant:"

    assert parse_pair({"chosen": f"{start} So.", "rejected": f"{start} No."}) == PAIR


def test_a_speaker_in_the_middle_of_a_line_does_not_make_a_transcript():
    pair = parse_pair({"chosen": "The Human: a study.", "rejected": "No."})

    assert pair.chosen == [assistant("The Human: a study.")]


@pytest.mark.parametrize(
    "text",
    [
        "### Human: why?### Assistant: ",
        "Below is an instruction.\n\n### Instruction:\nWhy?\n\n### Response:\n",
        "A chat. USER: why? ASSISTANT: ",
        "GPT4 Correct User: why?\n\nGPT4 Correct Assistant: ",
        "user: why?\nassistant: ",
        "**User**: why?\n\n**Assistant**: ",
        "H: why?\n\nA: ",
        "Question: why?\n\nAnswer: ",
    ],
)
def test_a_transcript_in_an_unknown_format_is_refused(text: str):
    refused = refusal({"chosen": f"{text}so.", "rejected": f"{text}no."})
    assert refused.reason in (Reason.SPEAKER_TAG, Reason.TEMPLATED)
    kept = parse_pair({"prompt": "q", "chosen": f"{text}so.", "rejected": f"{text[3:]}no."})
    assert kept.prompt[0]["content"] == "q"


def test_a_transcript_with_windows_line_breaks_is_read():
    row = {
        side: f"\r\n\r\nHuman: {ASKED['content']}\r\n\r\nAssistant: {text}"
        for side, text in REPLIES.items()
    }
    assert parse_pair(row) == ANSWERED


def test_a_transcript_may_end_within_the_answer():
    row = {"prompt": "\n\nHuman: Q\n\nAssistant: Sure,", "chosen": " x", "rejected": " y"}
    assert parse_pair(row).chosen[-1]["content"] == "Sure, x"


def test_labels_in_a_long_text_are_found_quickly():
    text = "user: x " * 20_000 + "H:" + "\n" * 50_000
    assert parse_pair({"chosen": f"{text}a", "rejected": f"{text}b"}).prompt == []


def test_a_response_that_continues_the_other_is_kept():
    row = {"chosen": "So.\nQuestion: why?\nAnswer: so.", "rejected": "So."}
    assert parse_pair(row).prompt == []
