"""Messages and rows for tests of how rows are read."""

import json
from typing import Any

import pytest

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.rows.pairs import Pair, parse_pair, read_pair
from rm_ray.data.rows.refusals import RefusedError
from rm_ray.data.rows.turns import Message

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


def both(*prompt: Any, chosen: Any = "So.", rejected: Any = "No.") -> Row:
    return {
        "chosen": [*prompt, assistant(chosen)],
        "rejected": [*prompt, assistant(rejected)],
    }


SYSTEM = {"role": "system", "content": "Be brief."}

ASKED = {"role": "user", "content": "Why is it so?"}

SO = {"role": "assistant", "content": "So."}

NO = {"role": "assistant", "content": "No."}

REPLIES = {"chosen": "So.", "rejected": "No."}

CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"town": "Ulm"}}}

WITH_CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def whole(*prompt: Message) -> Row:
    return {"chosen": [*prompt, SO], "rejected": [*prompt, NO]}


def lost(row: Row, rules: ColumnRules | None = None) -> tuple[str, ...]:
    return read_pair(row, "", rules or ColumnRules())[1].lost


def from_human(text: str) -> Message:
    return {"from": "human", "value": text}


SHAREGPT = {"chosen": {"from": "gpt", "value": "So."}, "rejected": {"from": "gpt", "value": "No."}}

HISTORY = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

TEXT_OF = json.dumps

ANSWERED = Pair(chosen=[ASKED, SO], rejected=[ASKED, NO])
