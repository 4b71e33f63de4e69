"""The fields of a request: read, known to be harmless, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rm_ray.errors import InputError

LONGEST_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A field that may only have values that change nothing; null is always one."""

    values: tuple[Any, ...] = ()
    advice: str
    """Why other values are refused, and what to do."""


NEVER_CUT = Fixed(advice="conversations are never cut; send ones within the server's limit")

NO_ACTIVATION = Fixed(
    values=(False,),
    advice="rewards are never put through an activation; apply a sigmoid to them yourself",
)

SERVERS_TEMPLATE = Fixed(
    advice="messages are rendered by the served model's own chat template; to score another "
    "text, send the text"
)

WHOLE_CONVERSATION = Fixed(
    values=(False,), advice="a reward is that of a whole conversation, which ends with a response"
)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields that the requests of one route may have; any other is refused."""

    route: str
    read: tuple[str, ...]
    harmless: tuple[str, ...] = ("model",)
    """Fields that change no reward, and are not read. One server serves one model, which its
    answers name, so ``model`` chooses nothing."""
    fixed: Mapping[str, Fixed] = field(default_factory=dict)

    def check(self, body: Any) -> dict[str, Any]:
        """Return the fields to read that are not null.

        Raises:
            InputError: the body is not an object, or asks for what is not done.
        """
        if not isinstance(body, dict):
            raise InputError(
                f"the body of {self.route} must be a JSON object with {self._known}, got "
                f"{shown(body)}"
            )
        for name, value in body.items():
            if name in self.fixed:
                self._check_fixed(name, value)
            elif name not in self.read and name not in self.harmless:
                raise InputError(
                    f"{self.route} does not know the field {shown(name)} and would not act on it; "
                    f"it reads {self._known}; remove the field"
                )
        return {name: body[name] for name in self.read if body.get(name) is not None}

    @property
    def _known(self) -> str:
        return ", ".join(f"'{name}'" for name in self.read)

    def _check_fixed(self, name: str, value: Any) -> None:
        fixed = self.fixed[name]
        if value is None or any(type(value) is type(v) and value == v for v in fixed.values):
            return
        allowed = " or ".join(["null", *map(repr, fixed.values)])
        raise InputError(f"'{name}' must be {allowed}, got {shown(value)}: {fixed.advice}")


def shown(value: Any) -> str:
    """Return a value for an error message: short, and free of characters that cannot be sent."""
    text = repr(value) if isinstance(value, str | int | float | None) else _kind(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"an object with {', '.join(map(repr, list(value)[:5])) or 'nothing'}"


def take_one(fields: Mapping[str, Any], names: tuple[str, ...], route: str) -> str:
    """Return the name of the one field that a request must have exactly one of.

    Raises:
        InputError: it has none or several of them.
    """
    given = [name for name in names if name in fields]
    if len(given) == 1:
        return given[0]
    which = " or ".join(f"'{name}'" for name in names)
    raise InputError(
        f"{route} needs {which}{', and only one of them' * (len(names) > 1)}; got "
        f"{' and '.join(map(repr, given)) or 'none'}"
    )


def read_texts(value: Any, name: str) -> tuple[str, ...]:
    """Return a text or a list of texts as texts.

    Raises:
        InputError: it is something else, or an empty list.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise InputError(f"'{name}' must be a text or a list of texts, got {shown(value)}")
    if not texts:
        raise InputError(f"'{name}' is an empty list; send at least one text")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"'{name}[{i}]' must be a text, got {shown(text)}")
    return tuple(texts)


def read_inputs(value: Any, name: str) -> tuple[str | tuple[int, ...], ...]:
    """Return a text, token ids, or a list of either kind as texts or token ids.

    Raises:
        InputError: it is something else, of several kinds, or an empty list.
    """
    if not isinstance(value, list) or (value and isinstance(value[0], str)):
        return read_texts(value, name)
    if value and isinstance(value[0], list):
        return tuple(read_ids(ids, f"{name}[{i}]") for i, ids in enumerate(value))
    return (read_ids(value, name),)


def read_ids(value: Any, name: str) -> tuple[int, ...]:
    """Return a list of token ids.

    Raises:
        InputError: it is not a list of numbers that can be ids, or is empty.
    """
    if not isinstance(value, list) or not value:
        rule = "a text, a list of texts, a list of token ids or a list of such lists"
        raise InputError(f"'{name}' must be {rule}, and not empty; got {shown(value)}")
    for i, number in enumerate(value):
        if type(number) is not int or not 0 <= number < 2**31:
            raise InputError(f"'{name}[{i}]' must be a token id, got {shown(number)}")
    return tuple(value)


def read_choice(fields: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    """Return the value of a field that has a few, the first by default.

    Raises:
        InputError: it has another value.
    """
    value = fields.get(name, choices[0])
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(f"'{choice}'" for choice in choices)
        raise InputError(f"'{name}' must be {listed}, got {shown(value)}")
    return value


def read_limit(fields: Mapping[str, Any], name: str) -> int | None:
    """Return a maximum length in tokens, or None.

    Raises:
        InputError: it is not a positive whole number.
    """
    value = fields.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"'{name}' must be a positive number of tokens, got {shown(value)}")
    return value
