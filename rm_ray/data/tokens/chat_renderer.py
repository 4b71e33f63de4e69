"""Conversations -> text with the tokenizer's chat template, and what the template leaves out."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from rm_ray.data.rows.column_names import classify_name
from rm_ray.data.rows.context import NO_CONTEXT, Context
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message, has_lone_surrogate, texts_of
from rm_ray.data.tokens.omissions import (
    DISTINCTIVE_LENGTH,
    contains,
    find_lost_context,
    is_distinctive,
    refuse_lost_calls,
)

TEMPLATE_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError
)  # fmt: skip
"""Exceptions that a template may raise for a row: Jinja's own, and Python's from its code."""

_REASONING = ("reasoning_content", "reasoning", "thinking")

_END_OF_THOUGHT = "</think>"

_CALL = {"name": "rm_ray_name", "arguments": {"rm_ray_key": "rm_ray_value"}}


class ChatRenderer:
    """Renders conversations with a chat template, and finds what it leaves out.

    A row is refused if content, tool calls, tools or documents are missing from the text. Templates
    may drop other keys and the reasoning of a turn, which is only reported (Qwen3's template drops
    the reasoning of earlier turns, as in its training).
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
        """Return conversations as text, rendering consecutive ones with equal contexts together.

        Raises:
            RefusedError: a text is not valid Unicode.
            TEMPLATE_FAILURES: the template fails on a conversation.
        """
        texts: list[str] = []
        pairs = zip(conversations, contexts, strict=True)
        for _, group in groupby(pairs, key=lambda each: _context_key(each[1])):
            members = list(group)
            context = members[0][1]
            batch = [self._adapt_calls(messages) for messages, _ in members]
            texts += self.tokenizer.apply_chat_template(
                batch,
                tokenize=False,
                tools=context.tools,
                documents=context.documents,
                add_generation_prompt=add_generation_prompt,
            )
        if any(map(has_lone_surrogate, texts)):
            raise RefusedError(Reason.NOT_UNICODE, "half a surrogate pair")
        return texts

    def _adapt_calls(self, messages: list[Message]) -> list[Message]:
        """Convert the arguments of tool calls to the form that the template takes."""
        if not any("tool_calls" in message for message in messages) or not self._takes_text:
            return messages
        return [_with_text_arguments(message) for message in messages]

    @functools.cached_property
    def _takes_text(self) -> bool:
        """Whether the template expects arguments as JSON text, instead of encoding them itself."""
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
        """Return the keys whose values are missing from a conversation's text, from ``first`` on.

        Raises:
            RefusedError: content, a tool call, a tool or a document is missing.
        """
        unwritten: dict[str, None] = {}
        end = 0
        for i, message in enumerate(messages[first:], start=first):
            content = message.get("content", "")
            found = text.find(content, end)
            if found >= 0 and len(content) >= DISTINCTIVE_LENGTH:
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
        if len(content) < DISTINCTIVE_LENGTH and not self._writes_turn(messages, i):
            return False
        return found >= 0 or contains(text, content)

    def _writes_turn(self, messages: list[Message], i: int) -> bool:
        """Return whether the template writes the content of this turn at all."""
        roles = tuple(message["role"] for message in messages)
        key = ("content", i, roles)
        if key not in self._writes:
            said = f"rm-ray-{'x' * DISTINCTIVE_LENGTH}-{{}}"
            others = [{"role": role, "content": said.format(n)} for n, role in enumerate(roles)]
            text = self._render_or_none(others)
            self._writes[key] = text is None or said.format(i) in text
        return self._writes[key]

    def _render_or_none(self, messages: list[Message]) -> str | None:
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
            elif key in _REASONING or is_distinctive(value):
                if not all(contains(text, part) for part in texts_of(value)):
                    yield key
            elif not self._writes_key(messages, i, key):
                if classify_name(key) == "part":
                    raise RefusedError(Reason.LEFT_OUT, f"{key!r} of turn {i + 1}")
                yield key

    def _writes_key(self, messages: list[Message], i: int, key: str) -> bool:
        """Return whether the text changes if a message lacks this key."""
        shape = tuple((m["role"], *sorted(m.keys() - {"content"})) for m in messages)
        found = self._writes.get((key, i, shape))
        if found is None:
            without = [*messages]
            without[i] = {k: v for k, v in messages[i].items() if k != key}
            before, after = (
                self._render_or_none(self._adapt_calls(messages)),
                self._render_or_none(self._adapt_calls(without)),
            )
            found = self._writes[key, i, shape] = before is None or before != after
        return found


def _context_key(context: Context) -> str:
    """Return a text that identifies a context; ``==`` would not do, as ``True == 1`` in Python."""
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
