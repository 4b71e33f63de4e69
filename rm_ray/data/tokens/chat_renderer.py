"""Conversations to text by the tokenizer's chat template, and what the template leaves out."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from rm_ray.data.rows.column_names import find_standing
from rm_ray.data.rows.context import NO_CONTEXT, Context
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message, has_half_a_surrogate, texts_of
from rm_ray.data.tokens.omissions import (
    SURE_LENGTH,
    contains,
    find_lost_context,
    is_sure,
    refuse_lost_calls,
)

TEMPLATE_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError
)  # fmt: skip
"""What a template raises over a row: its own refusals, and Python's for what it does with it."""

_REASONING = ("reasoning_content", "reasoning", "thinking")

_END_OF_THOUGHT = "</think>"

_CALL = {"name": "rm_ray_name", "arguments": {"rm_ray_key": "rm_ray_value"}}


class ChatRenderer:
    """Writes conversations by a chat template, and finds what it leaves out.

    Content, tool calls, tools and documents that are nowhere in the text refuse the row. Templates
    may drop other keys, and the reasoning of a turn (Qwen3's drops that of earlier turns, as the
    model was trained): these are reported.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._writes: dict[tuple[Any, ...], bool] = {}

    def render(
        self,
        conversations: Sequence[list[Message]],
        contexts: Sequence[Context],
        *,
        add_generation_prompt: bool = False,
    ) -> list[str]:
        """Write conversations as text, all at once where they have the same context.

        Raises:
            RefusedError: one of them is no valid Unicode.
            TEMPLATE_FAILURES: the template refuses one of them.
        """
        texts: list[str] = []
        together = zip(conversations, contexts, strict=True)
        for _, group in groupby(together, key=lambda each: _write_context(each[1])):
            members = list(group)
            context = members[0][1]
            batch = [self._suit(messages) for messages, _ in members]
            texts += self.tokenizer.apply_chat_template(
                batch,
                tokenize=False,
                tools=context.tools,
                documents=context.documents,
                add_generation_prompt=add_generation_prompt,
            )
        if any(map(has_half_a_surrogate, texts)):
            raise RefusedError(Reason.NOT_UNICODE, "half a surrogate pair")
        return texts

    def _suit(self, messages: list[Message]) -> list[Message]:
        """Write the arguments of tool calls as the template takes them."""
        if not any("tool_calls" in message for message in messages) or not self._wants_text:
            return messages
        return [_with_text_arguments(message) for message in messages]

    @functools.cached_property
    def _wants_text(self) -> bool:
        """Whether the template joins arguments to text, instead of writing them as JSON itself."""
        as_object = self._try_call(_CALL)
        if as_object is not None and '"rm_ray_key"' in as_object.replace('\\"', '"'):
            return False
        as_text = self._try_call({**_CALL, "arguments": json.dumps(_CALL["arguments"])})
        return as_text is not None and '"rm_ray_key"' in as_text

    def _try_call(self, function: dict[str, Any]) -> str | None:
        call = {"id": "a1b2c3d4e", "type": "function", "function": function}
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        for tried in (messages, [*messages, {"role": "tool", "content": "1", "name": "f",
                                             "tool_call_id": "a1b2c3d4e"}]):  # fmt: skip
            try:
                return str(self.tokenizer.apply_chat_template(tried, tokenize=False))
            except TEMPLATE_FAILURES:
                continue
        return None

    def find_unwritten(
        self, messages: list[Message], text: str, context: Context, *, first: int = 0
    ) -> tuple[str, ...]:
        """Return the keys whose values the text of a conversation does not have, from a turn on.

        Raises:
            RefusedError: what it lacks is what somebody says, a call, a tool or a document.
        """
        unwritten: dict[str, None] = {}
        end = 0
        for i, message in enumerate(messages[first:], start=first):
            content = message.get("content", "")
            found = text.find(content, end)
            if found >= 0 and len(content) >= SURE_LENGTH:
                end = found + len(content)
            elif not self._has_content(messages, i, text, found):
                said = content.rpartition(_END_OF_THOUGHT)[2]
                if said == content or not contains(text, said):
                    raise RefusedError(
                        Reason.LEFT_OUT, f"the {message['role']}'s turn {i + 1}: {content[:80]!r}"
                    )
                unwritten["content before </think>"] = None
            elif found >= 0:
                end = found + len(content)
            if len(message) > 2 or "content" not in message:
                unwritten |= dict.fromkeys(self._find_keys(messages, i, text))
        unwritten |= dict.fromkeys(find_lost_context(context, text))
        return tuple(unwritten)

    def _has_content(self, messages: list[Message], i: int, text: str, found: int) -> bool:
        content = messages[i].get("content", "").strip()
        if not content:
            return True
        if len(content) < SURE_LENGTH and not self._writes_turn(messages, i):
            return False
        return found >= 0 or contains(text, content)

    def _writes_turn(self, messages: list[Message], i: int) -> bool:
        """Tell whether the template writes the content of a turn at this place at all."""
        roles = tuple(message["role"] for message in messages)
        key = ("content", i, roles)
        if key not in self._writes:
            said = f"rm-ray-{'x' * SURE_LENGTH}-{{}}"
            others = [{"role": role, "content": said.format(n)} for n, role in enumerate(roles)]
            text = self._try(others)
            self._writes[key] = text is None or said.format(i) in text
        return self._writes[key]

    def _try(self, messages: list[Message]) -> str | None:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        except TEMPLATE_FAILURES:
            return None

    def _find_keys(self, messages: list[Message], i: int, text: str) -> Iterator[str]:
        message = messages[i]
        for key, value in message.items():
            if key in ("role", "content"):
                continue
            if key == "tool_calls":
                refuse_lost_calls(value, text, i)
            elif key in _REASONING or is_sure(value):
                if not all(contains(text, part) for part in texts_of(value)):
                    yield key
            elif not self._writes_key(messages, i, key):
                if find_standing(key) == "part":
                    raise RefusedError(Reason.LEFT_OUT, f"{key!r} of turn {i + 1}")
                yield key

    def _writes_key(self, messages: list[Message], i: int, key: str) -> bool:
        """Tell whether the template writes another text where a message has no such key."""
        shape = tuple((m["role"], *sorted(m.keys() - {"content"})) for m in messages)
        found = self._writes.get((key, i, shape))
        if found is None:
            without = [*messages]
            without[i] = {k: v for k, v in messages[i].items() if k != key}
            before, after = self._try(self._suit(messages)), self._try(self._suit(without))
            found = self._writes[key, i, shape] = before is None or before != after
        return found


def _write_context(context: Context) -> str:
    """Return what tells contexts apart; for Python, ``true`` is 1."""
    return "" if context is NO_CONTEXT else repr(context)


def _with_text_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        if not isinstance(function.get("arguments", ""), str):
            written = json.dumps(function["arguments"], ensure_ascii=False)
            call = {**call, "function": {**function, "arguments": written}}
        calls.append(call)
    return {**message, "tool_calls": calls}
