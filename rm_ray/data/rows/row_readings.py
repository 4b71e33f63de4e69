"""How one row was read: which columns became what, and which may be lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from rm_ray.config.column_rules import ALIASES
from rm_ray.data.rows.column_names import find_path_standing, is_about, may_be_a_prompt, plain_name
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.context import Context
from rm_ray.data.rows.transcripts import is_whole_transcript, split_transcript
from rm_ray.data.rows.turns import Message, asks_something, collapse_spaces, texts_of
from rm_ray.data.rows.values import load_json


@dataclass(frozen=True, kw_only=True)
class RowReading:
    """How one row was read."""

    used: Mapping[str, str] = field(default_factory=dict)
    """Part to column."""
    left: tuple[str, ...] = ()
    """Columns with something in them that were not used."""
    lost: tuple[str, ...] = ()
    """Those of them that usually hold part of a conversation, and hold what it has nowhere."""
    unwritten: tuple[str, ...] = ()
    """Keys of messages and tools whose values the chat template does not write."""

    is_asked: bool = True
    """Whether somebody says something before the responses."""

    def to_json(self) -> str:
        """Return what ``sum_up`` counts; most rows of a source have the same."""
        return self._json

    @cached_property
    def _json(self) -> str:
        return json.dumps([self.used, self.left, self.lost, self.unwritten, self.is_asked])


@lru_cache(maxsize=1_024)
def share_reading(
    used: tuple[tuple[str, str], ...],
    left: tuple[str, ...] = (),
    lost: tuple[str, ...] = (),
    *,
    is_asked: bool,
) -> RowReading:
    """Return the reading of a row, which all rows share that are read alike."""
    return RowReading(used=dict(used), left=left, lost=lost, is_asked=is_asked)


def find_reading(
    columns: RowColumns, conversations: Sequence[list[Message]], context: Context
) -> RowReading:
    """Say what the columns of a row became, now that all that are used have been taken.

    Of those that are left, one that usually holds part of a conversation is lost unless all that
    it says is in the conversations anyway: text before the last turn (a response often quotes its
    context), messages anywhere. Where nobody asks anything, the question may stand in any column
    that has a sentence in it.
    """
    is_asked = any(map(asks_something, conversations))
    if columns.are_all_taken:
        return share_reading(tuple(columns.used.items()), is_asked=is_asked)
    left, lost = [], []
    prompts = [messages[:-1] for messages in conversations]
    asked = said = None
    for name, value in columns.left():
        left.append(name)
        if not _may_say_something(name, value, is_asked):
            continue
        if _is_text(value):
            asked = asked or _plain_texts(prompts, context)
            is_repeated = _is_repeated(value, asked)
        else:
            said = said or _plain_texts(conversations, context)
            is_repeated = _is_repeated(value, said)
        if not is_repeated or isinstance(value, int | float):
            lost.append(name)
    return share_reading(tuple(columns.used.items()), tuple(left), tuple(lost), is_asked=is_asked)


def _may_say_something(name: str, value: Any, is_asked: bool) -> bool:
    """Tell whether a column that is left may hold part of the conversation."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return plain_name(name) in ALIASES["prompt"]
    if find_path_standing(name) == "part":
        return True
    if is_asked:
        return False
    return may_be_a_prompt(name) or any(len(text.split()) > 1 for text in texts_of(value))


def _is_text(value: Any) -> bool:
    """Tell whether a value is text or texts, rather than messages."""
    if isinstance(value, list):
        return all(map(_is_text, value))
    if not isinstance(value, str) or is_whole_transcript(value):
        return False
    return not isinstance(load_json(value), list | dict)


def _plain_texts(conversations: Sequence[list[Message]], context: Context) -> str:
    parts = texts_of([*conversations, context.tools, context.documents])
    return collapse_spaces("\0".join(parts)) or "\0"


def _is_repeated(value: Any, said: str) -> bool:
    """Tell whether all texts of a value are in the conversation too."""
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
