"""A YAML recipe, plain dictionaries, or a command line -> a validated configuration."""

from __future__ import annotations

import argparse
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pydantic
import tyro
import yaml

from rm_ray.config.recipe_text import load_settings
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError

Command = TypeVar("Command")
Settings = TypeVar("Settings")

_LISTS = ("train", "eval", "exclude", "columns", "ignore_columns", "score_weights")
"""List fields of ``data`` that may be given as one string."""


def parse_options(kind: type[Command], program: str, arguments: Sequence[str]) -> Command:
    """Parse a command's options, which override its recipe; exit with 2 if an option is wrong.

    ``kind`` is a dataclass with a ``recipe``, a ``config`` and the command's own options.

    Raises:
        InputError: the recipe is missing, one of its settings is unknown or wrong, or an option
            that takes a list is repeated.
    """
    refuse_repeated(kind, arguments)
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


def refuse_repeated(kind: type, arguments: Sequence[str]) -> None:
    """Refuse options of a command that take a list and are given twice: only the last would count.

    Raises:
        InputError: names the option.
    """
    flags = (text.partition("=")[0] for text in arguments if text.startswith("--"))
    counts = Counter(flag[2:].replace("-", "_") for flag in flags)
    for name, count in counts.items():
        # Some commands leave out the name of the group that an option is in.
        if count > 1 and any(f".{known}".endswith(f".{name}") for known in _list_fields(kind)):
            raise InputError(
                f"--{name} is given {count} times, of which only the last would count; give it "
                f"once with all values: --{name} A B"
            )


def _list_fields(kind: type) -> Iterator[str]:
    """Yield the fields, nested ones too, that take any number of values."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from (f"{name}.{nested}" for nested in _list_fields(hint))
        elif get_origin(hint) is tuple and get_args(hint)[-1] is ...:
            yield name


def parse_config(settings: dict[str, Any], origin: str = "the configuration") -> TrainConfig:
    """Build a config from nested dictionaries.

    Raises:
        InputError: a name is unknown or a value breaks a rule; the message names the field, and
            the value and rule or the nearest known name.
    """
    settings = _fill_in(settings)
    refuse_unknown(TrainConfig, settings, prefix="", origin=origin)
    return build_settings(TrainConfig, _list_mappings(settings), origin)


def build_settings(cls: type[Settings], settings: dict[str, Any], origin: str) -> Settings:
    """Build a dataclass of settings from nested dictionaries whose names are known.

    Raises:
        InputError: a value breaks a rule.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(settings)
    except pydantic.ValidationError as error:
        raise InputError(f"{origin}: {_explain(error)}") from None


def _list_mappings(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert the mappings that fields may be given as to the command line's format."""
    data = settings.get("data") or {}
    listed = {
        name: [f"{key}={value}" for key, value in data[name].items()]
        for name, kinds in (("columns", (str,)), ("score_weights", (int, float, str)))
        if isinstance(data.get(name), dict)
        and all(type(value) in kinds for value in data[name].values())
    }
    if listed:
        settings = {**settings, "data": {**data, **listed}}
    evaluation = settings.get("evaluation") or {}
    if (sets := _list_sets(evaluation.get("sets"))) is not None:
        settings = {**settings, "evaluation": {**evaluation, "sets": sets}}
    return settings


def _list_sets(sets: Any) -> list[str] | None:
    """Convert a mapping of names to sources; None if it is something else."""
    if not isinstance(sets, dict):
        return None
    listed = {name: [given] if type(given) is str else given for name, given in sets.items()}
    if not all(
        isinstance(sources, list) and sources and all(type(source) is str for source in sources)
        for sources in listed.values()
    ):
        return None
    return [f"{name}={source}" for name, sources in listed.items() for source in sources]


def read_recipe(path: Path) -> TrainConfig:
    """Read a recipe; omitted sections and fields keep their defaults.

    Raises:
        InputError: it is missing or not YAML, or one of its settings is unknown or wrong.
    """
    return parse_config(read_settings(path, "--recipe"), origin=str(path))


def read_settings(path: Path, option: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; ``option`` is the one that names the file.

    Raises:
        InputError: it is missing or not YAML, or holds something else.
    """
    try:
        settings = load_settings(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
        raise InputError(f"{option} {path}: no such file. Files in its folder: {near}") from None
    except RecursionError:
        raise InputError(
            f"{option} {path} must contain sections with fields, but is nested too deeply"
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML raises ValueError for an invalid date
        raise InputError(f"{option} {path} is not valid YAML: {error}") from None
    except OSError as error:
        raise InputError(f"{option} {path} cannot be read: {error}") from None
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise InputError(f"{option} {path} must contain sections with fields, got {settings!r}")
    return settings


def _fill_in(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with defaults for empty sections and lists, and lists for single strings."""
    filled = {name: {} if value is None else value for name, value in settings.items()}
    if isinstance(data := filled.get("data"), dict):
        given = {k: v for k, v in data.items() if v is not None or k not in _LISTS}
        listed = {k: [v] for k, v in given.items() if k in _LISTS and type(v) is str}
        day = given.get("template_date")  # YAML parses an unquoted date
        dated = {"template_date": day.isoformat()} if type(day) is date else {}
        filled["data"] = {**given, **listed, **dated}
    if isinstance(evaluation := filled.get("evaluation"), dict):
        filled["evaluation"] = {
            name: _split_sets(value) if name == "sets" and type(value) is str else value
            for name, value in evaluation.items()
            if value is not None or name != "sets"
        }
    if isinstance(lora := filled.get("lora"), dict) and type(lora.get("targets")) is str:
        filled["lora"] = {**lora, "targets": [lora["targets"]]}
    return filled


def _split_sets(text: str) -> list[str]:
    """Split 'a=x.jsonl b=y.jsonl' before each name; paths may have spaces."""
    return re.split(r"\s+(?=[a-z0-9_-]+=)", text.strip())


def refuse_unknown(cls: type, settings: dict[str, Any], prefix: str, origin: str) -> None:
    """Refuse names that are no fields of a dataclass, or of a section in it.

    Raises:
        InputError: names the field and the nearest known name.
    """
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
            refuse_unknown(hints[name], value, f"{prefix}{name}.", origin)
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
