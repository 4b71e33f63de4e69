"""The reading of one row: which columns became which part, and which may be lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

from rm_ray.config.column_rules import ALIASES
from rm_ray.data.rows.column_names import classify_path, is_about, may_be_a_prompt, plain_name
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.context import Context
from rm_ray.data.rows.transcripts import is_whole_transcript, split_transcript
from rm_ray.data.rows.turns import Message, asks_something, collapse_spaces, texts_of
from rm_ray.data.rows.values import load_json


@dataclass(frozen=True, kw_only=True)
class RowReading:
    """How one row was read."""

    used: Mapping[str, str] = field(default_factory=dict)
    """Column of each part."""
    left: tuple[str, ...] = ()
    """Unused columns with content."""
    lost: tuple[str, ...] = ()
    """Unused columns that seem to hold part of the conversation that no used column has."""
    unwritten: tuple[str, ...] = ()
    """Keys of messages and tools whose values the chat template does not write."""
    has_prompt: bool = True
    """Whether any turn comes before the responses, not counting instructions."""
    form: str = ""
    """The published form that the row was read as; empty if it is rm_ray's own."""
    reversal: str = ""
    """What says, unlike the labels, that the worse response is better; empty if nothing does."""

    def to_json(self) -> str:
        """Return the JSON that ``sum_up`` counts; most rows of a source share it."""
        return self._json

    @cached_property
    def _json(self) -> str:
        reversal = [self.reversal] if self.reversal else []
        columns = (self.used, self.left, self.lost, self.unwritten)
        return json.dumps([*columns, self.has_prompt, self.form, *reversal])


@lru_cache(maxsize=1_024)
def share_reading(
    used: tuple[tuple[str, str], ...],
    left: tuple[str, ...] = (),
    lost: tuple[str, ...] = (),
    *,
    has_prompt: bool,
    form: str = "",
    reversal: str = "",
) -> RowReading:
    """Return a cached reading, shared by all rows that are read alike."""
    return RowReading(
        used=dict(used),
        left=left,
        lost=lost,
        has_prompt=has_prompt,
        form=form,
        reversal=reversal,
    )


def find_reading(
    columns: RowColumns,
    conversations: Sequence[list[Message]],
    context: Context,
    form: str = "",
    reversal: str = "",
) -> RowReading:
    """Return the reading of a row whose used columns have all been taken.

    An unused column that usually holds part of a conversation is lost unless the conversations
    repeat all of it: text before the last turn (a response often quotes its context), messages
    anywhere. Without a prompt, any column with a sentence in it may hold the question.
    """
    has_prompt = any(map(asks_something, conversations))
    share = partial(share_reading, has_prompt=has_prompt, form=form, reversal=reversal)
    if columns.are_all_taken:
        return share(tuple(columns.used.items()))
    left, lost = [], []
    prompts = [messages[:-1] for messages in conversations]
    prompt_text = full_text = None
    for name, value in columns.left():
        left.append(name)
        if not _may_hold_conversation(name, value, has_prompt):
            continue
        if _is_text(value):
            prompt_text = prompt_text or _plain_texts(prompts, context)
            is_repeated = _is_repeated(value, prompt_text)
        else:
            full_text = full_text or _plain_texts(conversations, context)
            is_repeated = _is_repeated(value, full_text)
        if not is_repeated or isinstance(value, int | float):
            lost.append(name)
    return share(tuple(columns.used.items()), tuple(left), tuple(lost))


def _may_hold_conversation(name: str, value: Any, has_prompt: bool) -> bool:
    """Return whether an unused column may hold part of the conversation."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return plain_name(name) in ALIASES["prompt"]
    if classify_path(name) == "part":
        return True
    if has_prompt:
        return False
    return may_be_a_prompt(name) or any(len(text.split()) > 1 for text in texts_of(value))


def _is_text(value: Any) -> bool:
    """Return whether a value is text or a list of texts, rather than messages."""
    if isinstance(value, list):
        return all(map(_is_text, value))
    if not isinstance(value, str) or is_whole_transcript(value):
        return False
    return not isinstance(load_json(value), list | dict)


def _plain_texts(conversations: Sequence[list[Message]], context: Context) -> str:
    parts = texts_of([*conversations, context.tools, context.documents])
    return collapse_spaces("\0".join(parts)) or "\0"


def _is_repeated(value: Any, said: str) -> bool:
    """Return whether the conversation repeats all texts of a value."""
    if isinstance(value, str):
        text = collapse_spaces(value.strip())
        if text in said:
            return True
        if is_whole_transcript(value):
            return all(collapse_spaces(part) in said for part in split_transcript(value))
        loaded = load_json(value) if text[:1] in ("[", "{") else None
        return isinstance(loaded, list | dict) and _is_repeated(loaded, said)
    if isinstance(value, dict):
        return all(_is_repeated(v, said) for k, v in value.items() if not is_about(k))
    if isinstance(value, list):
        return all(_is_repeated(item, said) for item in value)
    return value is None or isinstance(value, bool | int | float)
