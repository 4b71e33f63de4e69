"""What a preference pair must be, and the reasons to refuse a row that is not one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Message = dict[str, Any]
"""``role``, ``content`` (text; none beside ``tool_calls``) and whatever else a row gives it."""

Schemas = list[dict[str, Any]]
"""Tools or documents, as chat templates take them."""

LARGEST_MARGIN = 1e6
"""Beyond it a float32 loss has no digits left for the rewards."""


class Reason(StrEnum):
    """Why a row is refused; the values are what the tables and the quarantine file show."""

    MISSING_FIELD = "chosen or rejected missing"
    NOT_MESSAGES = "not messages"
    NOT_TEXT = "content that is not text"
    NOT_UNICODE = "not valid Unicode"
    UNKNOWN_ROLE = "unknown role"
    EMPTY = "empty"
    LAST_TURN_NOT_ASSISTANT = "last turn not assistant"
    SPEAKER_TAG = "speaker tag inside a turn"
    SPEAKERS_DO_NOT_ALTERNATE = "speakers do not alternate"
    TEMPLATED = "written by a chat template already"
    PROMPTS_DIFFER = "prompts differ"
    IDENTICAL_RESPONSES = "identical responses"
    BAD_TOOLS = "tools not a list of schemas"
    BAD_DOCUMENTS = "documents not a list of objects or texts"
    BAD_MARGIN = "margin not a usable number"
    RESERVED_TOKENS = "reserved tokens in content"
    TEMPLATE_REFUSED = "refused by the chat template"
    LEFT_OUT = "left out by the chat template"
    IDENTICAL_AFTER_TEMPLATING = "identical after templating"
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "too long"
    HELD_OUT = "prompt is held out too"


class RefusedError(Exception):
    """A row breaks the contract; carries the reason and a short detail."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = encodable(detail)
        super().__init__(f"{reason}: {self.detail}" if detail else str(reason))


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a chat template is given beside the messages."""

    tools: Schemas | None = None
    documents: Schemas | None = None


NO_CONTEXT = Context()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two conversations that agree on all but the last turn, which is the assistant's."""

    chosen: list[Message]
    rejected: list[Message]
    margin: float = 0.0
    source: str = ""
    context: Context = NO_CONTEXT

    @property
    def prompt(self) -> list[Message]:
        """The turns that both conversations share."""
        return self.chosen[:-1]

    def swap(self) -> Pair:
        """Return the pair with the preference turned around."""
        return Pair(
            chosen=self.rejected,
            rejected=self.chosen,
            margin=self.margin,
            source=self.source,
            context=self.context,
        )


_ABOUT_A_MESSAGE = frozenset(
    ("id", "message_id", "uuid", "uid", "parent_id", "created_at", "create_time", "timestamp",
     "date", "time", "model", "score", "rating", "rank", "annotations", "metadata")
)  # fmt: skip
"""Keys of a message that say something about it and are no part of it."""


def without_notes(message: Message) -> Message:
    """Return a message without what is only said about it, to compare it by."""
    if len(message) == 2:
        return message
    return {key: value for key, value in message.items() if key not in _ABOUT_A_MESSAGE}


def is_same(left: Message, right: Message) -> bool:
    """Tell whether two messages are one, but for their notes; ``true`` is not 1."""
    left, right = without_notes(left), without_notes(right)
    if left != right or left.keys() == _TEXT_ALONE:
        return left == right
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def agree(left: list[Message], right: list[Message]) -> bool:
    """Tell whether two lists hold the same messages."""
    return left == right or [*map(without_notes, left)] == [*map(without_notes, right)]


_TEXT_ALONE = {"role", "content"}

_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def has_half_a_surrogate(text: str) -> bool:
    """Tell whether a text holds half a character, which no file and no tokenizer takes."""
    return not text.isascii() and _HALF_SURROGATE.search(text) is not None


def check_turns(messages: list[Message], side: str) -> None:
    """Refuse a conversation that does not end in the assistant's turn, or has an empty turn."""
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise RefusedError(Reason.LAST_TURN_NOT_ASSISTANT, f"{side} ends with {role!r}")
    for message in messages:
        content = message.get("content", "")
        if not content or content.isspace():
            speaks = message["role"] in ("user", "assistant")
            if speaks and not message.get("tool_calls"):
                raise RefusedError(Reason.EMPTY, f"a turn of the {message['role']} in {side}")
        if message.keys() == _TEXT_ALONE and content.isascii() and message["role"].isascii():
            continue
        if any(map(has_half_a_surrogate, texts_of(message))):
            raise RefusedError(Reason.NOT_UNICODE, f"half a surrogate pair in {side}")


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in a value, the names of keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def parse_margin(value: Any) -> float:
    """Return a margin; 0 where it is missing, which pandas writes as NaN.

    Raises:
        RefusedError: it is no number, or a useless one.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return 0.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= LARGEST_MARGIN:
        hint = "; it is a number written as text" if isinstance(value, str) else ""
        raise RefusedError(Reason.BAD_MARGIN, f"{_shown(value)}{hint if _is_number(value) else ''}")
    return float(value)


def _is_number(text: Any) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False


def _shown(value: Any) -> str:
    return (repr(value) if isinstance(value, int | float | str) else json.dumps(value))[:80]


def encodable(text: str) -> str:
    """Return text that a file can hold: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
