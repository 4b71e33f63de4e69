"""The prompt of a row, from whichever columns hold it, and the conversations that go on from it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rm_ray.data.rows.columns import RowColumns, is_blank, plain_name
from rm_ray.data.rows.contract import Message, Reason, RefusedError
from rm_ray.data.rows.messages import find_embedded, read_value
from rm_ray.data.rows.transcripts import (
    answer_transcript,
    is_whole_transcript,
    read_transcript,
    refuse_other_transcript,
    starts_with_speaker,
)

_INSTRUCTIONS = ("system", "developer")
"""Roles of turns that stand before a conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a row says before its responses."""

    turns: list[Message] = field(default_factory=list)
    """Those of its columns, without the one of ``system``."""
    system: str | None = None
    transcript: str | None = None
    """Where the turns were written as one text."""
    questions: list[Any] | None = None
    """Where it is a list of texts: what the user says in each turn (LMSYS's arena files)."""
    is_blank: bool = False
    """Whether a column for it is there, with nothing in it."""
    is_conversation: bool = False
    """Whether it comes from a column of messages, which may end with one of the responses."""

    def find_answer(self, value: Any, name: str) -> Message | None:
        """Return what a value says in place of the last turn; None where it says something else.

        That is one turn of the assistant's, alone or at the end of the same conversation.
        """
        read = read_value(value, name)
        if isinstance(read, str):
            is_transcript = is_whole_transcript(read)
            return None if is_transcript else {"role": "assistant", "content": read}
        _, turns = _split(read)
        _, asked = _split(self.turns)
        is_alone = len(turns) == 1
        is_parallel = len(turns) == len(asked) and all(map(_same, turns[:-1], asked[:-1]))
        is_answer = bool(turns) and turns[-1]["role"] == "assistant"
        return turns[-1] if is_answer and (is_alone or is_parallel) else None

    def before_answer(self) -> Prompt:
        """Return the prompt without the response that it ends with."""
        return replace(self, turns=self.turns[:-1], is_conversation=False)

    def answer(self, value: Any, name: str) -> list[Message]:
        """Return the conversation that a response, several turns or a whole one makes.

        Raises:
            RefusedError: it is no conversation, or one that begins with another prompt.
        """
        messages = self._go_on(value, name)
        if not messages:
            raise RefusedError(Reason.EMPTY, f"{name} has no turns")
        if self.is_blank and messages[0]["role"] == "assistant":
            raise RefusedError(Reason.EMPTY, "the prompt")
        return self._with_system(messages, name)

    def _go_on(self, value: Any, name: str) -> list[Message]:
        if self.questions:
            answers = read_texts(value)
            if answers is not None and len(answers) == len(self.questions):
                return _exchange(self.questions, answers)
        if self.questions and not self.turns:
            raise RefusedError(
                Reason.NOT_MESSAGES,
                f"the prompt is a list of {len(self.questions)} texts, and {name} is no list of as "
                "many; take one of them with data.columns, as in prompt=prompt.0",
            )
        read = read_value(value, name)
        if not isinstance(read, str):
            return join_turns(self.turns, read, name)
        if self.turns:
            if is_whole_transcript(read):
                return join_turns(self.turns, read_transcript(read), name)
            if self.transcript is not None:
                return answer_transcript(self.transcript, read)
            return [*self.turns, {"role": "assistant", "content": read}]
        if is_whole_transcript(read) or (starts_with_speaker(read) and not self.is_blank):
            return read_transcript(read)
        refuse_other_transcript(read, name)
        return [{"role": "assistant", "content": read}]

    def _with_system(self, messages: list[Message], name: str) -> list[Message]:
        if self.system is None:
            return messages
        if messages[0]["role"] in _INSTRUCTIONS:
            if _plain(messages[0].get("content", "")) == _plain(self.system):
                return messages
            raise RefusedError(
                Reason.PROMPTS_DIFFER, f"the system column and the first turn of {name}"
            )
        return [{"role": "system", "content": self.system}, *messages]


def answer_both(prompt: Prompt, chosen: Any, rejected: Any) -> tuple[list[Message], list[Message]]:
    """Return the conversations that two responses make.

    Raises:
        RefusedError: as ``Prompt.answer`` does, or the prompt ends with a third response.
    """
    if _may_hold_an_answer(prompt):
        answers = [prompt.find_answer(chosen, "chosen"), prompt.find_answer(rejected, "rejected")]
        if None not in answers:
            prompt = replace(prompt, is_conversation=True)
    own = prompt.before_answer() if prompt.is_conversation else prompt
    both = own.answer(chosen, "chosen"), own.answer(rejected, "rejected")
    refuse_listed(both)
    if isinstance(chosen, str) and isinstance(rejected, str):
        embedded = [find_embedded(chosen, "chosen"), find_embedded(rejected, "rejected")]
        if embedded.count(None) == 1:
            raise RefusedError(
                Reason.NOT_MESSAGES,
                "one response is a list of messages as JSON and the other one is plain text",
            )
    if prompt.is_conversation and not any(_same(prompt.turns[-1], each[-1]) for each in both):
        raise RefusedError(
            Reason.PROMPTS_DIFFER,
            "the prompt ends with an assistant's turn that is neither response",
        )
    return both


def _may_hold_an_answer(prompt: Prompt) -> bool:
    """Tell whether the last turn is what an assistant says to the user."""
    if prompt.is_conversation or prompt.transcript is not None or not prompt.turns:
        return False
    last = prompt.turns[-1]
    return last["role"] == "assistant" and not last.get("tool_calls")


def refuse_listed(conversations: Sequence[list[Message]]) -> None:
    """Refuse a question and responses that are texts of lists, as pandas writes them into CSV.

    Raises:
        RefusedError: all of them are.
    """
    texts = [messages[-1].get("content", "") for messages in conversations]
    texts += [m.get("content", "") for m in conversations[0][:-1] if m["role"] == "user"][-1:]
    if len(texts) == 3 and all(map(_is_listed, texts)):
        raise RefusedError(
            Reason.NOT_MESSAGES,
            f"prompt and responses are texts of lists of texts: {texts[-1].strip()[:80]}",
        )


def _is_listed(text: str) -> bool:
    """Tell whether a text is a list of texts, as JSON or Python writes it."""
    stripped = text.strip()
    if stripped[:2] not in ("['", '["') or stripped[-2:] not in ("']", '"]'):
        return False
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return all(isinstance(item, str) for item in value)


def read_texts(value: Any) -> list[Any] | None:
    """Return a list of texts, also one written as JSON; None for other values."""
    if isinstance(value, str) and re.match(r"""\s*\[\s*(?:"|null)""", value):
        value = _loaded_list(value)
    if not isinstance(value, list) or not value:
        return None
    return value if all(text is None or isinstance(text, str) for text in value) else None


def _exchange(questions: list[Any], answers: list[Any]) -> list[Message]:
    return [
        {"role": role, "content": text or ""}
        for turn in zip(questions, answers, strict=True)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def join_turns(prompt: list[Message], messages: list[Message], name: str) -> list[Message]:
    """Put a prompt before messages that answer it; a conversation that begins with it stays whole.

    Raises:
        RefusedError: it is a whole conversation with another prompt.
    """
    if not prompt or not messages:
        return messages
    if len(messages) > len(prompt) and all(map(_same, prompt, messages)):
        return messages
    heads, asked = _split(prompt)
    own_heads, turns = _split(messages)
    if not own_heads and turns and turns[0]["role"] != "user":
        return prompt + messages
    if not own_heads and asked and asked[-1]["role"] == "assistant":
        return prompt + messages
    if not _comes_in(asked, turns[:-1]):
        raise RefusedError(Reason.PROMPTS_DIFFER, f"{name} is a conversation with another prompt")
    if heads and own_heads and not _comes_in(heads, own_heads):
        raise RefusedError(Reason.PROMPTS_DIFFER, f"{name} begins with another system turn")
    return messages if own_heads else heads + messages


def _split(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """Return the instructions before a conversation, and its turns."""
    start = next((i for i, m in enumerate(messages) if m["role"] not in _INSTRUCTIONS), None)
    start = len(messages) if start is None else start
    return messages[:start], messages[start:]


def _comes_in(part: list[Message], whole: list[Message]) -> bool:
    """Tell whether all messages of one list are in the other one, in the same order."""
    left = iter(whole)
    return all(any(_same(message, other) for other in left) for message in part)


def _same(left: Message, right: Message) -> bool:
    return (
        left["role"] == right["role"]
        and _plain(left.get("content", "")) == _plain(right.get("content", ""))
        and left.get("tool_calls") == right.get("tool_calls")
    )


def _plain(text: str) -> str:
    return " ".join(text.split())


def read_prompt(columns: RowColumns) -> Prompt:
    """Read the prompt of a row: its text or messages, the turns before it, its system text.

    Raises:
        RefusedError: a column of it is neither text nor messages.
    """
    value, is_empty = _take_prompt(columns)
    from_messages = value is None and "messages" not in columns.used
    if from_messages:
        value = _take_messages(columns)
    past: list[Message] = []
    transcript = None
    for column, found in columns.candidates("history"):
        if not is_blank(found):
            past = _read_history(found)
            if past:
                columns.mark("history", column)
            elif value is None and isinstance(found, str) and found.strip() != "[]":
                columns.mark("prompt", column)
                value = found
    system = _read_system(columns.take("system"))
    if value is None:
        return Prompt(turns=past, system=system, is_blank=is_empty and not past)
    questions = read_texts(value) if not past and not is_blank(value) else None
    if questions is not None and not isinstance(value, str):
        return Prompt(system=system, questions=questions)
    read = read_value(value, "prompt")
    if isinstance(read, str):
        transcript = read if _is_transcript(read) and not past else None
        turns = _read_text(read)
    else:
        turns = read
    if past and turns and past[-1]["role"] == "user" and _same(past[-1], turns[0]):
        past = past[:-1]  # the turns before the question, and the question once more
    ends = bool(turns) and turns[-1]["role"] == "assistant"
    return Prompt(
        turns=past + turns,
        system=system,
        transcript=transcript,
        questions=questions,
        is_conversation=from_messages and ends and not isinstance(read, str),
    )


def _is_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:") or is_whole_transcript(text)


def _read_text(text: str) -> list[Message]:
    if _is_transcript(text):
        turns = read_transcript(text)
        is_open = bool(turns) and turns[-1]["role"] == "assistant" and not turns[-1]["content"]
        return turns[:-1] if is_open else turns
    refuse_other_transcript(text, "prompt")
    return [{"role": "user", "content": text}]


def _take_prompt(columns: RowColumns) -> tuple[Any, bool]:
    """Return the first prompt column that is filled, and whether one is there without content.

    An instruction and its input (Alpaca's columns) are joined by a line break.
    """
    is_empty = False
    for column, value in columns.candidates("prompt"):
        if is_blank(value):
            is_empty = is_empty or not isinstance(value, list)
            continue
        columns.mark("prompt", column)
        if plain_name(column) == "instruction" and isinstance(value, str):
            for other, text in columns.candidates("prompt"):
                if plain_name(other) == "input" and isinstance(text, str) and not is_blank(text):
                    columns.mark("prompt", other)
                    value = f"{value}\n{text}"
        return value, False
    return None, is_empty


def _take_messages(columns: RowColumns) -> Any:
    for column, value in columns.candidates("messages"):
        if not is_blank(value):
            columns.mark("prompt", column)
            return value
    return None


def _read_system(value: Any) -> str | None:
    if value is None:
        return None
    read = read_value(value, "system")
    if isinstance(read, str):
        return read
    if len(read) == 1 and read[0]["role"] in _INSTRUCTIONS and "content" in read[0]:
        return str(read[0]["content"])
    raise RefusedError(Reason.NOT_MESSAGES, "system is a conversation")


def _read_history(value: Any) -> list[Message]:
    """Return turns from pairs of texts, messages or a transcript; none from other text."""
    if isinstance(value, str):
        loaded = _loaded_pairs(value)
        if loaded is None:
            read = read_value(value, "history")
            if isinstance(read, str):
                return _read_text(read) if is_whole_transcript(read) else []
            return read
        value = loaded
    if isinstance(value, list) and value and all(map(_is_exchange, value)):
        return [
            {"role": role, "content": text}
            for exchange in value
            for role, text in zip(("user", "assistant"), exchange, strict=True)
            if not is_blank(text)
        ]
    read = read_value(value, "history")
    return [] if isinstance(read, str) else read


def _is_exchange(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(text is None or isinstance(text, str) for text in value)
    )


def _loaded_pairs(text: str) -> list[Any] | None:
    return _loaded_list(text) if text.lstrip().startswith("[[") else None


def _loaded_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None
