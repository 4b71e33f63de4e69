"""The columns of a row -> its prompt."""

from __future__ import annotations

from typing import Any

from rm_ray.data.rows.column_names import plain_name
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.messages import read_value
from rm_ray.data.rows.prompts import Prompt, read_texts
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.transcripts import (
    is_whole_transcript,
    read_transcript,
    refuse_other_transcript,
)
from rm_ray.data.rows.turns import INSTRUCTIONS, Message, are_equivalent
from rm_ray.data.rows.values import is_blank, load_list


def read_prompt(columns: RowColumns) -> Prompt:
    """Read the prompt of a row: its text or messages, its history and its system text.

    Raises:
        RefusedError: one of these columns holds neither text nor messages.
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
    if past and turns and past[-1]["role"] == "user" and are_equivalent(past[-1], turns[0]):
        past = past[:-1]  # the history repeats the question
    ends = bool(turns) and turns[-1]["role"] == "assistant"
    return Prompt(
        turns=past + turns,
        system=system,
        transcript=transcript,
        questions=questions,
        is_conversation=from_messages and ends and not isinstance(read, str),
    )


def _take_prompt(columns: RowColumns) -> tuple[Any, bool]:
    """Return the first prompt column with content, and whether there are only blank ones.

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
    if len(read) == 1 and read[0]["role"] in INSTRUCTIONS and "content" in read[0]:
        return str(read[0]["content"])
    raise RefusedError(Reason.NOT_MESSAGES, "system is a conversation")


def _read_history(value: Any) -> list[Message]:
    """Return turns from text pairs, messages or a transcript; an empty list for other text."""
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
    return load_list(text) if text.lstrip().startswith("[[") else None


def _is_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:") or is_whole_transcript(text)


def _read_text(text: str) -> list[Message]:
    if _is_transcript(text):
        turns = read_transcript(text)
        is_open = bool(turns) and turns[-1]["role"] == "assistant" and not turns[-1]["content"]
        return turns[:-1] if is_open else turns
    refuse_other_transcript(text, "prompt")
    return [{"role": "user", "content": text}]
