"""A YAML recipe, plain dictionaries, or a command line -> a validated configuration."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import pydantic
import tyro
import yaml

from rm_ray.config.recipe_text import load_settings
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError

Command = TypeVar("Command")

_LISTS = ("train", "eval", "columns", "ignore_columns")
"""List fields of ``data`` that may be given as one string."""


def parse_options(kind: type[Command], program: str, arguments: Sequence[str]) -> Command:
    """Parse a command's options, which override its recipe; exit with 2 if an option is wrong.

    ``kind`` is a dataclass with a ``recipe``, a ``config`` and the command's own options.

    Raises:
        InputError: the recipe is missing, or one of its settings is unknown or wrong.
    """
    recipe_parser = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    recipe_parser.add_argument("--recipe", type=Path)
    recipe = recipe_parser.parse_known_args(arguments)[0].recipe
    config = TrainConfig() if recipe is None else read_recipe(recipe)
    build: Callable[..., Command] = kind
    return tyro.cli(
        kind,
        prog=program,
        args=list(arguments),
        default=build(recipe=recipe, config=config),
        use_underscores=True,
    )


def parse_config(settings: dict[str, Any], origin: str = "the configuration") -> TrainConfig:
    """Build a config from nested dictionaries.

    Raises:
        InputError: a name is unknown or a value breaks a rule; the message names the field, and
            the value and rule or the nearest known name.
    """
    settings = _fill_in(settings)
    _refuse_unknown(TrainConfig, settings, prefix="", origin=origin)
    try:
        return pydantic.TypeAdapter(TrainConfig).validate_python(_list_columns(settings))
    except pydantic.ValidationError as error:
        raise InputError(f"{origin}: {_explain(error)}") from None


def _list_columns(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert a mapping in ``data.columns`` to the command line's format."""
    data = settings.get("data") or {}
    columns = data.get("columns")
    if not isinstance(columns, dict) or not all(isinstance(c, str) for c in columns.values()):
        return settings
    listed = [f"{part}={column}" for part, column in columns.items()]
    return {**settings, "data": {**data, "columns": listed}}


def read_recipe(path: Path) -> TrainConfig:
    """Read a recipe; omitted sections and fields keep their defaults.

    Raises:
        InputError: it is missing or not YAML, or one of its settings is unknown or wrong.
    """
    try:
        settings = load_settings(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
        raise InputError(f"--recipe {path}: no such file. Recipes in its folder: {near}") from None
    except RecursionError:
        raise InputError(
            f"--recipe {path} must contain sections with fields, but is nested too deeply"
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML raises ValueError for an invalid date
        raise InputError(f"--recipe {path} is not valid YAML: {error}") from None
    except OSError as error:
        raise InputError(f"--recipe {path} cannot be read: {error}") from None
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise InputError(f"--recipe {path} must contain sections with fields, got {settings!r}")
    return parse_config(settings, origin=str(path))


def _fill_in(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with defaults for empty sections and lists, and lists for single strings."""
    filled = {name: {} if value is None else value for name, value in settings.items()}
    if isinstance(data := filled.get("data"), dict):
        given = {k: v for k, v in data.items() if v is not None or k not in _LISTS}
        listed = {k: [v] for k, v in given.items() if k in _LISTS and type(v) is str}
        day = given.get("template_date")  # YAML parses an unquoted date
        dated = {"template_date": day.isoformat()} if type(day) is date else {}
        filled["data"] = {**given, **listed, **dated}
    return filled


def _refuse_unknown(cls: type, settings: dict[str, Any], prefix: str, origin: str) -> None:
    hints = get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise InputError(f"{origin}: unknown field '{prefix}{name}'; {hint}")
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise InputError(f"{origin}: '{prefix}{name}' must contain fields, got {value!r}")
            _refuse_unknown(hints[name], value, f"{prefix}{name}.", origin)
        elif isinstance(value, bool) and bool not in (hints[name], *get_args(hints[name])):
            raise InputError(f"{origin}: {prefix}{name} must not be true or false, got {value}")


def _explain(error: pydantic.ValidationError) -> str:
    """Return the field, the rule and the value of each error, joined into one line."""
    lines = []
    for detail in error.errors():
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            lines.append(str(cause))
        else:
            name = ".".join(str(part) for part in detail["loc"])
            rule = detail["msg"].replace("a valid tuple", "a list")
            lines.append(f"{name}: {rule}, got {detail['input']!r}")
    return "; ".join(dict.fromkeys(lines))
