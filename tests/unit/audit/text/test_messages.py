"""The text of messages."""

from rm_ray.audit.text.messages import leave_out_instructions, read_text

PROMPT = [
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": "No jokes."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]


def test_instructions_are_left_out():
    assert [message["content"] for message in leave_out_instructions(PROMPT)] == ["Why?", "So."]


def test_content_of_parts_is_read_and_a_call_has_no_text():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert read_text(PROMPT[2]) == "Why?"
    assert "one" in read_text({"role": "user", "content": parts})
    assert read_text({"role": "assistant", "tool_calls": [{}]}) == ""
