"""The text of messages."""

from typing import Any

from rm_ray.audit.text.messages import leave_out_instructions, read_all, read_text

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


def test_of_a_tool_call_its_name_and_arguments_count_in_any_order():
    def said(**call: Any) -> str:
        return read_all({"role": "assistant", "content": "Wait.", "tool_calls": [call]})

    function = {"name": "add", "arguments": {"a": 1, "b": True}}
    one = said(id="1", type="function", function=function)
    assert one == "Wait. 1 true add"
    swapped = {"arguments": {"b": True, "a": 1}, "name": "add"}
    assert said(function=swapped, id="2") == one
    for other in ({"a": 2, "b": True}, {"a": 1, "b": False}, {"a": True, "b": 1}, {"a": 1}, "1"):
        assert said(id="1", type="function", function={**function, "arguments": other}) != one


def test_a_text_in_a_tool_call_is_read_as_it_is():
    code = "import os\n\tprint(os.name)\n"
    call = {"function": {"name": "run", "arguments": {"code": code, "on": [1.5, None]}}}
    assert read_all({"role": "assistant", "tool_calls": [call]}) == f" {code} 1.5 null run"
