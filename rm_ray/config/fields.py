"""Fields of a configuration by name, and their type marks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

AUTO = "auto"
"""Value of a setting that the program chooses."""


@dataclass(frozen=True)
class MayChange:
    """Marks a field that a resumed run may change: how and where it trains, not what."""


MAY_CHANGE = MayChange()


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"section.field": value}`` for nested settings."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def field_types(config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``"section.field"`` and its annotated type for every field of a configuration."""
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        name, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from field_types(hint, f"{name}.")
        else:
            yield name, hint


def may_change(hint: Any) -> bool:
    """Return whether a field of this type is marked with ``MAY_CHANGE``."""
    return get_origin(hint) is Annotated and MAY_CHANGE in hint.__metadata__


def takes_auto(hint: Any) -> bool:
    """Return whether a field of this type may be 'auto'."""
    if get_origin(hint) is Literal:
        return AUTO in get_args(hint)
    return any(takes_auto(part) for part in get_args(hint))
