"""Hints for a source whose columns have unknown names or that is not a table of pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_ray.config.column_rules import ALIASES
from rm_ray.data.rows.column_names import classify_name, plain_name

_BETTER_AND_WORSE = (
    ("chosen", "rejected"), ("preferred", "dispreferred"), ("preferred", "non_preferred"),
    ("preferred", "unpreferred"), ("preferred", "rejected"), ("accepted", "rejected"),
    ("better", "worse"), ("best", "worst"), ("winner", "loser"), ("winning", "losing"),
    ("win", "lose"), ("positive", "negative"), ("pos", "neg"), ("good", "bad"),
    ("response_j", "response_k"),
)  # fmt: skip
_NEITHER = (("a", "b"), ("0", "1"), ("1", "2"))
"""Name endings of two responses that another column compares."""

_REPLY = re.compile(
    r"(?:.*_)?(?:responses?|answers?|completions?|conversations?|outputs?|texts?|reply|replies|"
    r"generations?|candidates?|messages?|chat|dialog|dialogue|transcript|summary)"
)
"""Usual names of response columns, without the word that distinguishes the two."""


def suggest_columns(row: Mapping[str, Any]) -> str:
    """Return a sentence on how to name or build the pair of a row."""
    if is_written_by_column(row):
        return (
            "It looks like a pandas table written by column or with its index; write one object "
            "per row: to_json(path, orient='records')"
        )
    by_plain_name = {plain_name(name): name for name in row}
    if pair := _find_better_and_worse(by_plain_name):
        return f"Name them: {_setting(row, *pair)}"
    if "rejected_response" in by_plain_name and "messages" in by_plain_name:
        return "'messages' seems to end with the chosen response; move it to a column 'chosen'"
    if labelled := _find_list(row):
        return labelled
    if pair := _find_two(row, by_plain_name):
        return (
            f"'{pair[0]}' and '{pair[1]}' seem to be two responses: if the first is the "
            f"better one in every row, use {_setting(row, *pair)}; if another column says which "
            "is better, write 'chosen' and 'rejected' from it first"
        )
    for name, value in row.items():
        if isinstance(value, list) and len(value) > 1 and all(isinstance(v, dict) for v in value):
            text = next((key for key, inside in value[0].items() if isinstance(inside, str)), None)
            if text and plain_name(name) not in ALIASES["messages"]:
                if number := _find_number(value[0]):
                    return (
                        f"'{name}' has a text and a number for each response: write a column "
                        f"'responses' with each '{text}', and 'scores' (the highest is the best) "
                        f"or 'ranks' (1 is the best) with each '{number}'"
                    )
                paths = (f"{name}.0.{text}", f"{name}.1.{text}")
                return f"If '{name}' has the best response first, use {_setting(row, *paths)}"
    return "If they have other names, name them with data.columns, as in chosen=COLUMN"


def _find_number(item: Mapping[str, Any]) -> str | None:
    """Return the key of a number that may rate a response."""
    rates = re.compile(r"(?:.*_)?(?:scores?|ratings?|ranks?|ranking|rewards?|grades?)")
    return next(
        (
            key
            for key, value in item.items()
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and rates.fullmatch(plain_name(key))
        ),
        None,
    )


def _find_list(row: Mapping[str, Any]) -> str | None:
    """Return a sentence on a column with a list of responses, and one with a number for each."""
    known = (*ALIASES["prompt"], *ALIASES["messages"], *ALIASES["history"])
    for name, value in row.items():
        plain = plain_name(name)
        if not _is_list_of(value, str) or plain in known or not _REPLY.fullmatch(plain):
            continue
        for other, numbers in row.items():
            if _is_list_of(numbers, int, float) and len(numbers) == len(value):
                part = "ranks" if "rank" in plain_name(other) else "scores"
                meaning = "1 is the best" if part == "ranks" else "the highest is the best"
                return f"If {meaning}, use --data.columns responses={name} {part}={other}"
        if plain in ALIASES["responses"]:
            return (
                f"'{name}' needs a column 'ranks' (1 is the best) or 'scores' (the highest is the "
                "best) beside it, with one number for each response"
            )
    return None


def _is_list_of(value: Any, *kinds: type) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(type(v) in kinds for v in value)


def _find_better_and_worse(by_plain_name: Mapping[str, str]) -> tuple[str, str] | None:
    """Return two response columns whose names say which is better, chosen first."""
    found: list[tuple[int, tuple[str, str]]] = []
    for better, worse in _BETTER_AND_WORSE:
        word = rf"(?<![a-z]){better}(?![a-z])"
        for plain, name in by_plain_name.items():
            other = by_plain_name.get(re.sub(word, worse, plain))
            if other is not None and other != name:
                found.append((_rank(re.sub(word, "", plain)), (name, other)))
    return _first_of_best(found)


def _find_two(row: Mapping[str, Any], by_plain_name: Mapping[str, str]) -> tuple[str, str] | None:
    """Return two response columns whose names differ only in their endings."""
    found: list[tuple[int, tuple[str, str]]] = []
    for first, second in _NEITHER:
        for plain, name in by_plain_name.items():
            stem = plain[: -len(first)]
            other = by_plain_name.get(stem + second)
            is_numbered = re.search(rf"[a-z]_?{first}$", plain) is not None
            if other and is_numbered and _may_be_responses(row, name, other):
                found.append((_rank(stem), (name, other)))
    return _first_of_best(found)


_NO_REPLY = 100


def _rank(stem: str) -> int:
    """Return how unlikely a name is for response columns: 0 for the most likely.

    ``stem`` is the name without the word that distinguishes the two columns.
    """
    words = [word for word in stem.split("_") if word]
    stem = "_".join(words)
    if not words or _REPLY.fullmatch(stem):
        return len(words)  # as in chosen_model_response, beside chosen_response
    return _NO_REPLY - 1 if classify_name(stem) == "unknown" else _NO_REPLY


def _first_of_best(found: Sequence[tuple[int, tuple[str, str]]]) -> tuple[str, str] | None:
    rank, pair = min(found, key=lambda each: each[0], default=(_NO_REPLY, None))
    return pair if rank < _NO_REPLY else None


def is_written_by_column(row: Any) -> bool:
    """Return whether a row is a whole table, as pandas writes it by column, index or split."""
    if not isinstance(row, dict):
        return False
    values = [*row.values()]
    is_transposed = bool(values) and all(
        isinstance(value, dict) and value and all(map(str.isdecimal, value)) for value in values
    )
    is_indexed = all(map(str.isdecimal, row)) and all(isinstance(v, dict) for v in values)
    return bool(row) and (is_transposed or is_indexed or set(row) == {"columns", "index", "data"})


def _may_be_responses(row: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(row[name], str | list | dict) for name in names)


def _setting(row: Mapping[str, Any], chosen: str, rejected: str) -> str:
    """Return the setting that names two columns, with a prompt column unless one is known."""
    taken = {chosen, rejected}
    known = {plain_name(name) for name in row if name not in taken}
    prompt = next(
        (name for name in row if name not in taken and classify_name(name) == "part"), None
    )
    is_known = known & {*ALIASES["prompt"], *ALIASES["messages"], *ALIASES["history"]}
    more = f" prompt={prompt}" if prompt and not is_known else ""
    return f"--data.columns chosen={chosen} rejected={rejected}{more}"
