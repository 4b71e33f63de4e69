"""Conversations to text by the tokenizer's chat template, and what the template leaves out."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from rm_ray.data.rows.columns import find_standing
from rm_ray.data.rows.contract import (
    NO_CONTEXT,
    Context,
    Message,
    Reason,
    RefusedError,
    has_half_a_surrogate,
    texts_of,
)

TEMPLATE_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError
)  # fmt: skip
"""What a template raises over a row: its own refusals, and Python's for what it does with it."""

SURE_LENGTH = 12
"""A text of so many characters that stands in a rendered conversation was written there."""

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
                if said == content or not _contains(text, said):
                    raise RefusedError(
                        Reason.LEFT_OUT, f"the {message['role']}'s turn {i + 1}: {content[:80]!r}"
                    )
                unwritten["content before </think>"] = None
            elif found >= 0:
                end = found + len(content)
            if len(message) > 2 or "content" not in message:
                unwritten |= dict.fromkeys(self._find_keys(messages, i, text))
        unwritten |= dict.fromkeys(_find_context(context, text))
        return tuple(unwritten)

    def _has_content(self, messages: list[Message], i: int, text: str, found: int) -> bool:
        content = messages[i].get("content", "").strip()
        if not content:
            return True
        if len(content) < SURE_LENGTH and not self._writes_turn(messages, i):
            return False
        return found >= 0 or _contains(text, content)

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
                _refuse_lost_calls(value, text, i)
            elif key in _REASONING or _is_sure(value):
                if not all(_contains(text, part) for part in texts_of(value)):
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


def _is_sure(value: Any) -> bool:
    parts = list(texts_of(value))
    return bool(parts) and all(len(part) >= SURE_LENGTH for part in parts)


def _refuse_lost_calls(calls: list[dict[str, Any]], text: str, turn: int) -> None:
    """Refuse a turn whose calls are not in the text: their names and arguments.

    Raises:
        RefusedError: naming what is not there.
    """
    for call in calls:
        function = call["function"]
        for part in (function["name"], *leaves_of(function.get("arguments"))):
            if not _contains(text, part):
                raise RefusedError(
                    Reason.LEFT_OUT, f"a tool call in turn {turn + 1}: {part[:80]!r}"
                )


def _find_context(context: Context, text: str) -> Iterator[str]:
    """Yield which parts of tools and documents the text lacks; refuse where one is not there."""
    for tool in context.tools or ():
        name = tool.get("function", tool).get("name", "")
        if name and not _contains(text, name):
            raise RefusedError(Reason.LEFT_OUT, f"the tool {name!r}")
        if not all(_contains(text, part) for part in leaves_of(tool)):
            yield "parts of tools"
    for document in context.documents or ():
        parts = list(leaves_of(document))
        if parts and not any(_contains(text, part) for part in parts if len(part) >= SURE_LENGTH):
            longest = max(parts, key=len)
            if not _contains(text, longest):
                raise RefusedError(Reason.LEFT_OUT, f"a document: {longest[:80]!r}")
        if not all(_contains(text, part) for part in parts):
            yield "parts of documents"


def leaves_of(value: Any) -> Iterator[str]:
    """Yield texts and numbers of a value, as JSON writes them without quotes."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves_of(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def _contains(text: str, part: str) -> bool:
    """Tell whether a text has a part: as it is, as JSON writes it, or with other spaces."""
    part = part.strip()
    if part in text:
        return True
    if json.dumps(part, ensure_ascii=False)[1:-1] in text or json.dumps(part)[1:-1] in text:
        return True
    return _squeezed(part) in _squeezed(text)


def _squeezed(text: str) -> str:
    return "".join(text.split())


class ReservedTokens:
    """The tokens of a tokenizer that no text of a row may have."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens)))

    def refuse(self, messages: Iterable[Message], context: Context) -> None:
        """Refuse a conversation in which one stands.

        Raises:
            RefusedError: naming the token.
        """
        for message in messages:
            plain = len(message) == 2 and isinstance(message.get("content"), str)
            for text in (message["content"],) if plain else texts_of(message):
                self._check(text)
        if context.tools is not None or context.documents is not None:
            for text in texts_of([context.tools or [], context.documents or []]):
                self._check(text)

    def _check(self, text: str) -> None:
        if found := self._pattern.search(text):
            raise RefusedError(Reason.RESERVED_TOKENS, found.group())
